"""The engine's loop: whoever decodes takes a step, then the next prompts are read."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from whence_server.domain.decoding import FinishReason, Strategy, TraceOptions
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Decision
from whence_server.engine.decoding import NoChoice, Row
from whence_server.engine.jobs import Reading, Running, failure, num_new_tokens, readings
from whence_server.engine.messages import (
    Admit,
    GenerationFailed,
    Prefilled,
    StepMade,
    StopGeneration,
    StopSequence,
    Turn,
)
from whence_server.engine.runner import Runner
from whence_server.engine.scheduler import Chunk, Scheduler

logger = logging.getLogger(__name__)


class Choosing(Protocol):
    """Chooses tokens and says why; see `decoding.Chooser`."""

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> Sequence[Decision | NoChoice]:
        """One decision for each row of [rows, V]; appends nothing."""

    def score_prompt(
        self, logits: torch.Tensor, next_token_ids: torch.Tensor, trace: TraceOptions
    ) -> list[Decision]:
        """What [tokens, V] said of the tokens that really came next."""


class EngineLoop:
    """Turns messages from the front into turns for it.

    A turn is one forward pass and what was chosen from it, sent as soon as it is there: a token
    of a running stream does not wait for somebody else's prompt.

    Args:
        runner: its batch's rows are this loop's running sequences, in the same order.
        choosing: chooses the tokens.
        scheduler: keeps the bounds.
        max_context_length: of the model.
        send: takes every `Turn`.
    """

    def __init__(
        self,
        runner: Runner,
        choosing: Choosing,
        scheduler: Scheduler,
        max_context_length: int,
        send: Callable[[Turn], None],
    ) -> None:
        self._runner = runner
        self._choosing = choosing
        self._scheduler = scheduler
        self._max_context_length = max_context_length
        self._send = send
        self._reading: dict[str, Reading] = {}
        self._running: list[Running] = []

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do until a message comes."""
        return self._scheduler.is_idle

    def handle(self, message: Admit | StopSequence | StopGeneration) -> None:
        """Takes a message from the front; between steps only."""
        match message:
            case Admit():
                self._admit(message)
            case StopGeneration(generation_id):
                self._drop(generation_id)
            case StopSequence(generation_id, index):
                self._leave(
                    i
                    for i, running in enumerate(self._running)
                    if running.generation_id == generation_id
                    and running.row.sequence_index == index
                )

    @torch.inference_mode()
    def turn(self) -> None:
        """One step for all running sequences, then as much prompt as a turn may read."""
        if self._running:
            self._step()
        for chunk in self._scheduler.next_chunks():
            reading = self._reading.get(chunk.job_id)
            if reading is None:
                continue  # its generation failed with an earlier chunk of this turn
            with self._failing_alone(reading.admit.generation_id):
                self._read(chunk, reading)

    def _admit(self, admit: Admit) -> None:
        num_prompt_tokens = len(admit.prompt_token_ids)
        decoding = admit.decoding
        with self._failing_alone(admit.generation_id):
            if decoding.strategy is Strategy.BEAM_SEARCH:
                raise GenerationFailedError("NOT_OFFERED", "beam search is not offered yet")
            if not 0 < num_prompt_tokens <= self._max_context_length:
                raise GenerationFailedError(
                    "PROMPT_LENGTH",
                    f"a prompt of {num_prompt_tokens} tokens does not fit the model's context of "
                    f"{self._max_context_length}",
                )
            for job_id, reading in readings(admit).items():
                num_tokens = len(reading.token_ids)
                num_left = num_new_tokens(decoding) - reading.num_recorded
                self._reading[job_id] = reading
                self._scheduler.admit(
                    job_id,
                    num_tokens,
                    min(num_left, self._max_context_length - num_tokens),
                    len(reading.sequence_indices),
                )

    def _step(self) -> None:
        """Reads each running sequence's newest token and chooses the next."""
        started_ns = time.monotonic_ns()
        num_rows = len(self._running)
        try:
            logits = self._runner.decode([running.token_id for running in self._running])
            self._runner.synchronize()
            forward_ns = time.monotonic_ns() - started_ns
            decisions = self._choosing.choose(logits, [running.row for running in self._running])
        except Exception as error:
            logger.exception("a step of %d sequences failed", num_rows)
            self._fail_all(error)
            return
        ready_ns = time.monotonic_ns()
        steps, failed = self._take(self._running, decisions)
        self._leave(i for i, step in enumerate(steps) if step is not None and step.finish)
        lost = {failed_one.generation_id for failed_one in failed}
        for generation_id in lost:
            self._drop(generation_id)
        self._send(
            Turn(
                prefilled=[],
                steps=[s for s in steps if s is not None and s.generation_id not in lost],
                failed=failed,
                ready_ns=ready_ns,
                forward_ns=forward_ns,
                select_ns=ready_ns - started_ns - forward_ns,
                batch_size=num_rows,
            )
        )

    def _read(self, chunk: Chunk, reading: Reading) -> None:
        """Reads a piece of a prompt; after the last, its sequences take their first step."""
        started_ns = time.monotonic_ns()
        token_ids = reading.token_ids
        trace = reading.admit.trace
        traces_prompt = trace.prompt and not reading.num_recorded
        if reading.prompt is None:
            reading.prompt = self._runner.start(token_ids)
            reading.started_ns = started_ns
            if traces_prompt:
                reading.prompt_decisions.append(Decision(token_ids[0], None))
        prompt = reading.prompt
        logits = self._runner.prefill(prompt, chunk.num_tokens, all_logits=traces_prompt)
        self._runner.synchronize()
        forward_ns = time.monotonic_ns() - started_ns
        if traces_prompt:
            following = token_ids[prompt.num_done - chunk.num_tokens + 1 : prompt.num_done + 1]
            reading.prompt_decisions += self._choosing.score_prompt(
                logits[: len(following)], torch.tensor(following, dtype=torch.int64), trace
            )
        if chunk.is_last:
            self._start(chunk.job_id, reading, logits[-1:], forward_ns)

    def _start(self, job_id: str, reading: Reading, logits: torch.Tensor, forward_ns: int) -> None:
        """Lets a prompt's sequences into the batch with their next tokens.

        Args:
            job_id: the scheduler's name for them.
            reading: whose prompt has been read.
            logits: [1, V], after the prompt's last token.
            forward_ns: what they cost.
        """
        admit = reading.admit
        finished_ns = time.monotonic_ns()
        num_sequences = len(reading.sequence_indices)
        starting = [
            Running(
                job_id,
                admit.generation_id,
                Row(admit.decoding, admit.trace, index, reading.token_ids, reading.num_recorded),
                token_id=-1,
                context_length=len(reading.token_ids),
            )
            for index in reading.sequence_indices
        ]
        decisions = self._choosing.choose(
            logits.repeat(num_sequences, 1), [running.row for running in starting]
        )
        ready_ns = time.monotonic_ns()
        steps, failed = self._take(starting, decisions)
        if failed:
            raise GenerationFailedError(failed[0].reason, failed[0].message)
        self._join(reading, num_sequences)
        del self._reading[job_id]
        first = len(self._running)
        self._running += starting
        self._leave(first + i for i, step in enumerate(steps) if step is not None and step.finish)
        self._send(
            Turn(
                prefilled=[
                    Prefilled(
                        admit.generation_id,
                        reading.started_ns,
                        finished_ns,
                        reading.prompt_decisions,
                    )
                ],
                steps=[step for step in steps if step is not None],
                failed=[],
                ready_ns=ready_ns,
                forward_ns=forward_ns,
                select_ns=ready_ns - finished_ns,
                batch_size=num_sequences,
            )
        )

    def _join(self, reading: Reading, num_sequences: int) -> None:
        if reading.prompt is None:
            return
        try:
            self._runner.join(reading.prompt, num_sequences)
        except Exception as error:
            # Half of the layers may have the new rows: the batch is lost with them.
            self._fail_all(error)
            raise

    def _take(
        self, sequences: Sequence[Running], decisions: Sequence[Decision | NoChoice]
    ) -> tuple[list[StepMade | None], list[GenerationFailed]]:
        """Appends the chosen tokens; a step for each sequence, None where there is none."""
        steps: list[StepMade | None] = []
        failed: dict[str, GenerationFailed] = {}
        for running, decision in zip(sequences, decisions, strict=True):
            if isinstance(decision, NoChoice):
                failed[running.generation_id] = GenerationFailed(
                    running.generation_id,
                    decision.reason,
                    f"step {running.row.index} of sequence {running.row.sequence_index}: "
                    f"{decision.message}",
                )
                steps.append(None)
                continue
            row = running.row
            index = row.index
            row.append(decision.token_id)
            running.token_id = decision.token_id
            # The record says what the step has read; the token itself is not part of it.
            context_length = running.context_length
            running.context_length += 1
            steps.append(
                StepMade(
                    running.generation_id,
                    row.sequence_index,
                    index,
                    decision,
                    context_length,
                    self._finish_reason(running),
                )
            )
        return steps, list(failed.values())

    def _finish_reason(self, running: Running) -> FinishReason | None:
        """Why the sequence ends with its newest token, if it does."""
        decoding = running.row.decoding
        forced = decoding.strategy is Strategy.FORCED
        if not forced:
            if running.token_id in decoding.eos_token_ids and not decoding.ignore_eos:
                return FinishReason.END_OF_SEQUENCE
            if running.token_id in decoding.stop_token_ids:
                return FinishReason.STOP
        is_full = running.context_length >= self._max_context_length
        if running.row.index >= num_new_tokens(decoding) or is_full:
            return FinishReason.LENGTH
        return None

    def _leave(self, rows: Iterable[int]) -> None:
        """Takes rows out of the batch; from the back, since the last row fills each gap."""
        for row in sorted(rows, reverse=True):
            self._runner.leave(row)
            self._scheduler.leave_sequence(self._running[row].job_id)
            self._running[row] = self._running[-1]
            self._running.pop()

    def _drop(self, generation_id: str) -> None:
        """Takes a generation out, wherever it is."""
        self._leave(
            i for i, running in enumerate(self._running) if running.generation_id == generation_id
        )
        for job_id, reading in list(self._reading.items()):
            if reading.admit.generation_id == generation_id:
                del self._reading[job_id]
                self._scheduler.leave(job_id)

    def _fail_all(self, error: Exception) -> None:
        """Ends whatever is in the batch, whose cache cannot be trusted any more."""
        generation_ids = {running.generation_id for running in self._running}
        for job_id in {running.job_id for running in self._running}:
            self._scheduler.leave(job_id)
        self._running.clear()
        self._runner.clear()
        for generation_id in generation_ids:
            self._drop(generation_id)
        self._send_failures(failure(generation_id, error) for generation_id in generation_ids)

    @contextmanager
    def _failing_alone(self, generation_id: str) -> Iterator[None]:
        """Whatever goes wrong inside ends this generation and no other."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, GenerationFailedError):
                logger.exception("reading the prompt of generation %s failed", generation_id)
            self._drop(generation_id)
            self._send_failures([failure(generation_id, error)])

    def _send_failures(self, failures: Iterable[GenerationFailed]) -> None:
        self._send(Turn([], [], list(failures), time.monotonic_ns(), 0, 0, 0))
