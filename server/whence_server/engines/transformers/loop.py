"""The engine's loop: in each turn running sequences take a step, and prompts are read."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic

import torch

from whence_server import logs
from whence_server.constraints.compiler import Matcher
from whence_server.constraints.errors import ConstraintError
from whence_server.domain.decoding import TraceDetail
from whence_server.domain.engine import (
    Admit,
    Cost,
    GenerationFailed,
    Prefilled,
    PromptReading,
    PromptScored,
    StopGeneration,
    StopSequence,
    Turn,
    Utilisation,
)
from whence_server.domain.errors import GenerationFailedError
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.batch import Batch, BatchLostError, measure_cost
from whence_server.engines.transformers.decoding import Chooser
from whence_server.engines.transformers.inbox import AdmitConstrained, LoopMessage
from whence_server.engines.transformers.jobs import (
    PrefillJob,
    count_new_tokens,
    describe_failure,
    make_prefill_jobs,
)
from whence_server.engines.transformers.model_runner import ModelRunner, PromptT
from whence_server.engines.transformers.outbox import Outbox
from whence_server.engines.transformers.scheduler import Chunk, Scheduler

logger = logging.getLogger(__name__)

CANDIDATES_A_TOKEN = 16
"""Candidates of a prompt token whose recording takes as long as reading one token."""

REUSED_TOKENS_A_TURN = 4096
"""Cached tokens that are taken over in a turn, and the rest of the last prefix. This takes less
time than reading a chunk, so that many known prompts do not delay running streams."""


class EngineLoop(Generic[PromptT]):
    """Loop that handles messages from the front and sends turns to it.

    A turn is one forward pass with the tokens chosen from it. It is sent at once, so that a
    running stream's token does not wait for another request's prompt.

    A failed forward pass ends only the generations concerned, and is not raised. A lost device, as
    after a failed kernel, is raised and ends the process without a message about generations; the
    next engine process continues all of them.

    Args:
        runner: runs the forward passes; without rows.
        chooser: chooses the tokens.
        scheduler: admits and orders prompts.
        max_context_length: context length of the model.
        send: called with every `Turn`.
    """

    def __init__(
        self,
        runner: ModelRunner[PromptT],
        chooser: Chooser,
        scheduler: Scheduler,
        max_context_length: int,
        send: Callable[[Turn], None],
    ) -> None:
        self._runner = runner
        self._chooser = chooser
        self._scheduler = scheduler
        self._max_context_length = max_context_length
        self._send = send
        self._prefill_jobs: dict[str, PrefillJob[PromptT]] = {}
        self._num_prefill_chunks = 0
        self._outbox = Outbox()
        self._batch = Batch(runner, chooser, scheduler.leave_sequence)

    @property
    def is_idle(self) -> bool:
        """True if there is nothing to do until the next message."""
        return self._scheduler.is_idle and self._outbox.is_empty

    def handle(self, message: LoopMessage) -> None:
        """Handle a message; called between turns."""
        match message:
            case Admit():
                self._admit(message)
            case AdmitConstrained(admit, compiled):
                self._admit(admit, compiled)
            case StopGeneration(generation_id):
                self._batch.leave_generation(generation_id)
                self._drop(generation_id)
            case StopSequence(generation_id, index):
                self._batch.leave_sequence(generation_id, index)

    @torch.inference_mode()
    def run_turn(self) -> None:
        """Run a step of all running sequences, then read prompts within a turn's budget."""
        if self._batch.num_rows:
            self._step()
        held = self._reuse_prefixes()
        for chunk in self._scheduler.take_chunks(held):
            job = self._prefill_jobs.get(chunk.job_id)
            if job is None:
                continue  # its generation failed with an earlier chunk of this turn
            with self._isolate(job.admit.generation_id):
                self._read(chunk, job)
        if not self._outbox.is_empty:
            self._report(self._outbox.take_next(self._measure_no_pass()))

    def _admit(self, admit: Admit, compiled: Matcher | ConstraintError | None = None) -> None:
        num_prompt_tokens = len(admit.prompt_token_ids)
        decoding = admit.decoding
        with self._isolate(admit.generation_id):
            if isinstance(compiled, ConstraintError):
                raise compiled
            if not 0 < num_prompt_tokens <= self._max_context_length:
                raise GenerationFailedError(
                    "PROMPT_LENGTH",
                    f"a prompt of {num_prompt_tokens} tokens does not fit the model's context of "
                    f"{self._max_context_length}",
                )
            jobs: dict[str, PrefillJob[PromptT]] = make_prefill_jobs(admit, compiled)
            for job_id, job in jobs.items():
                num_tokens = len(job.token_ids)
                num_left = count_new_tokens(decoding) - job.num_replayed
                self._prefill_jobs[job_id] = job
                self._scheduler.admit(
                    job_id,
                    num_tokens,
                    min(num_left, self._max_context_length - num_tokens),
                    len(job.sequence_indices),
                    self._runner.count_whole(num_tokens, job.num_replayed),
                    token_cost=_estimate_token_cost(admit) if not job.num_replayed else 1,
                    caller=admit.caller,
                )

    def _step(self) -> None:
        """Run one step of the batch."""
        try:
            turn = self._batch.step()
        except Exception as error:
            self._require_device()
            logger.exception("a step of %d sequences failed", self._batch.num_rows)
            self._fail_rows(error)
            return
        for failed in turn.failed:
            self._drop(failed.generation_id)
        self._report(turn)

    def _reuse_prefixes(self) -> list[str]:
        """Take over cached prefixes of the prompts in prefill, also those cached since last turn.

        A request that traces its prompt reads the whole prompt: the cache holds no logits.

        Returns:
            Ids of the jobs whose prefixes have to wait for the next turn, and that must not be read
            before.
        """
        waiting = self._scheduler.list_prefilling()
        num_left = REUSED_TOKENS_A_TURN
        while waiting and num_left > 0:
            job_id = waiting.pop(0)
            job = self._prefill_jobs.get(job_id)
            if job is None or job.traces_prompt:
                continue
            with self._isolate(job.admit.generation_id):
                started_ns = time.monotonic_ns()
                prompt = self._start_prompt(job)
                num_before = prompt.num_done
                self._runner.reuse_prefix(prompt, job.namespace)
                num_reused = prompt.num_done - num_before
                if num_reused:
                    num_left -= num_reused
                    job.started_ns = job.started_ns or started_ns
                    self._scheduler.skip(job_id, num_reused)
        return waiting

    def _start_prompt(self, job: PrefillJob[PromptT]) -> PromptT:
        """Return the runner's prompt of a job, a new one if it has none."""
        if job.prompt is None:
            probed = job.admit.trace.detail is TraceDetail.INTERNALS
            job.prompt = self._runner.start(
                job.token_ids, job.num_replayed, probed=probed, adapter=job.admit.adapter
            )
        return job.prompt

    def _read(self, chunk: Chunk, job: PrefillJob[PromptT]) -> None:
        """Read a chunk of a prompt; after the last one, start its rows."""
        self._tell_progress(job)
        started_ns = time.monotonic_ns()
        job.started_ns = job.started_ns or started_ns
        prompt = self._start_prompt(job)
        logits = self._runner.prefill(prompt, chunk.num_tokens, all_logits=job.traces_prompt)
        self._runner.synchronize()
        forward_ns = time.monotonic_ns() - started_ns
        job.num_chunks += 1
        self._num_prefill_chunks += 1
        if job.traces_prompt:
            first = prompt.num_done - chunk.num_tokens
            self._score_prompt(job, first, prompt.num_done, logits, forward_ns)
        if chunk.is_last:
            self._start_rows(chunk.job_id, job, prompt, logits[-1:], forward_ns)
        if not bool(logits[-1].isnan().any()):
            # After the first token is sent, which does not wait for it.
            self._runner.keep_prefix(prompt, job.namespace)

    def _tell_progress(self, job: PrefillJob[PromptT]) -> None:
        """Send the number of prompt tokens that are read; replayed tokens are not the prompt's."""
        admit = job.admit
        num_read = 0 if job.prompt is None else job.prompt.num_done
        reading = PromptReading(admit.generation_id, min(num_read, len(admit.prompt_token_ids)))
        self._report(Turn(self._measure_no_pass(), prompts_reading=[reading]))

    def _score_prompt(
        self, job: PrefillJob[PromptT], first: int, end: int, logits: torch.Tensor, forward_ns: int
    ) -> None:
        """Send decisions for the prompt tokens that follow positions `first` to `end`."""
        scored_ns = time.monotonic_ns()
        token_ids, admit = job.token_ids, job.admit
        following = token_ids[first + 1 : end + 1]
        decisions = self._chooser.score_prompt(
            logits[: len(following)], torch.tensor(following, dtype=torch.int64), admit.trace
        )
        if first == 0:
            decisions.insert(0, Decision(token_ids[0], None))
        scored = PromptScored(admit.generation_id, first + 1 if first else 0, decisions)
        cost = measure_cost(scored_ns, forward_ns, self._batch.num_rows)
        self._report(Turn(cost, prompt_scored=[scored]))

    def _start_rows(
        self,
        job_id: str,
        job: PrefillJob[PromptT],
        prompt: PromptT,
        logits: torch.Tensor,
        forward_ns: int,
    ) -> None:
        """Add a prompt's rows to the batch, with their next tokens.

        Args:
            job_id: id of the job in the scheduler.
            job: the job whose prompt has been read.
            prompt: the runner's prompt.
            logits: [1, V], after the prompt's last token.
            forward_ns: wall time of the last forward pass.
        """
        finished_ns = time.monotonic_ns()
        rows = job.make_rows(job_id, self._max_context_length)
        try:
            turn = self._batch.start(rows, prompt, logits, forward_ns)
        except BatchLostError as lost:
            self._require_device()
            self._fail_rows(lost.reason)
            raise lost.reason from None
        del self._prefill_jobs[job_id]
        prefilled = Prefilled(
            job.admit.generation_id,
            job.started_ns,
            finished_ns,
            job.num_chunks,
            min(prompt.num_cached, len(job.admit.prompt_token_ids)),
        )
        self._report(turn._replace(prefilled=[prefilled]))

    def _drop(self, generation_id: str) -> None:
        """Remove a generation from batch, scheduler and outbox."""
        self._batch.leave_generation(generation_id, keep=False)
        self._outbox.drop(generation_id)
        for job_id, job in list(self._prefill_jobs.items()):
            if job.admit.generation_id == generation_id:
                del self._prefill_jobs[job_id]
                self._scheduler.leave(job_id)

    def _fail_rows(self, error: Exception) -> None:
        """Fail all generations in the batch, whose cache is in an undefined state."""
        generation_ids = self._batch.generation_ids
        self._batch.clear()
        for generation_id in generation_ids:
            self._drop(generation_id)
        self._send_failures(
            [describe_failure(generation_id, error) for generation_id in generation_ids]
        )

    @contextmanager
    def _isolate(self, generation_id: str) -> Iterator[None]:
        """Fail this generation, and no other, on any error within the context."""
        try:
            yield
        except Exception as error:
            self._require_device()
            if not isinstance(error, GenerationFailedError):
                logger.exception(
                    "reading a prompt failed", extra={logs.GENERATION_ID: generation_id}
                )
            self._drop(generation_id)
            self._send_failures([describe_failure(generation_id, error)])

    def _require_device(self) -> None:
        """Check, after a failure, that the device still works for this process.

        Raises:
            Exception: the device is lost.
        """
        try:
            self._runner.synchronize()
        except Exception:
            logger.critical("the device does not respond to this process, which ends")
            raise

    def _send_failures(self, failed: list[GenerationFailed]) -> None:
        self._report(Turn(measure_cost(time.monotonic_ns(), 0, 0), failed=failed))

    def _measure_no_pass(self) -> Cost:
        return measure_cost(time.monotonic_ns(), 0, self._batch.num_rows)

    def _report(self, turn: Turn) -> None:
        for done in turn.beam_searches:
            if done.sequences:
                self._outbox.put(done)
                turn = turn._replace(beam_searches=())
        utilisation = Utilisation(
            self._scheduler.num_cache_tokens,
            self._num_prefill_chunks,
            self._runner.num_prefix_tokens,
        )
        self._send(turn._replace(utilisation=utilisation))


def _estimate_token_cost(admit: Admit) -> int:
    """Return the cost of reading a prompt token, in tokens; more than 1 if prompts are traced."""
    trace = admit.trace
    num_logprobs = trace.num_candidates + len(trace.logprob_token_ids)
    return 1 + num_logprobs // CANDIDATES_A_TOKEN if trace.prompt else 1
