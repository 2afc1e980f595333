"""One batch of generations of another process, recorded as generations of this server are."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from whence_server.domain.decoding import FinishReason, Strategy
from whence_server.domain.engine import BeamRoundMade, Prefilled, StepMade, Turn
from whence_server.domain.errors import (
    Code,
    FieldViolation,
    GenerationExistsError,
    InvalidRequestError,
)
from whence_server.domain.generation import CallRecord, Failure, RecordedOrigin, Started
from whence_server.domain.model import ModelInfo
from whence_server.domain.recorded import (
    BatchEnd,
    BatchRound,
    BatchStart,
    BatchStep,
    RecordedPrompt,
)
from whence_server.generation.content.forms import StoredForms
from whence_server.generation.content.record import create_record
from whence_server.generation.recording.grades import grade
from whence_server.generation.running import RunningGeneration
from whence_server.journal.codec import encode_call
from whence_server.journal.journal import Journal
from whence_server.journal.rows import PREVIEW_CHARACTERS, GenerationIndex
from whence_server.text.tokenizer import TextTokenizer

METHOD = "whence.v1.RecordService/RecordGenerations"
# Decoding so many takes a few milliseconds.
_INLINE_TOKENS = 1_000
_CALL_CODES = {FinishReason.CANCELLED: Code.CANCELLED, FinishReason.INTERRUPTED: Code.UNAVAILABLE}


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A recorded model with its tokenizer."""

    info: ModelInfo
    tokenizer: TextTokenizer
    tokenizer_bytes: int
    """Size of its tokenizer's serialised form."""


async def decode_prompts(tokenizer: TextTokenizer, prompts: Sequence[RecordedPrompt]) -> list[str]:
    """Return the texts of a batch's prompts; long ones are decoded in a thread.

    A message holds millions of tokens, which would block the event loop for half a minute.
    """

    def decode() -> list[str]:
        pieces = (tokenizer.split_prompt(prompt.token_ids) for prompt in prompts)
        return ["".join(piece.text for piece in each) for each in pieces]

    if sum(len(prompt.token_ids) for prompt in prompts) <= _INLINE_TOKENS:
        return decode()
    return await asyncio.to_thread(decode)


def make_starts(
    start: BatchStart, model: ModelInfo, texts: Sequence[str], *, library: str, owner: str
) -> list[Started]:
    """Return the starts of a batch's generations, as they are recorded."""
    observation = grade(start.decoding)
    return [
        Started(
            generation_id=prompt.generation_id,
            trace_context=start.trace_contexts[prompt_index],
            start_time_ns=start.start_time_ns,
            model=model,
            prompt=text,
            prompt_token_ids=prompt.token_ids,
            decoding=start.decoding,
            trace=start.trace,
            processor_names=start.processor_names,
            request_digest=start.request_digest,
            labels=dict(start.labels),
            observation=observation,
            recorded=RecordedOrigin(library, len(start.prompts), prompt_index),
            owner=owner,
        )
        for prompt_index, (prompt, text) in enumerate(zip(start.prompts, texts, strict=True))
    ]


class RecordedBatch:
    """Generations of one batch, from their start to their end.

    Attributes:
        start: start of the batch.
        model: its model.
    """

    def __init__(
        self,
        start: BatchStart,
        model: ReadyModel,
        starts: Sequence[Started],
        *,
        journal: Journal,
        forms: StoredForms | None = None,
    ) -> None:
        """Write the starts of the generations.

        Args:
            start: start of the batch.
            model: its model.
            starts: starts of its generations.
            journal: the journal.
            forms: stored forms of generations whose record holds less than all.

        Raises:
            GenerationExistsError: an id is in use; the generations before it end as failed.
            JournalError: nothing can be written at present.
        """
        self.start = start
        self.model = model.info
        self._journal = journal
        self._forms = forms or StoredForms()
        self._arrival_ns = time.monotonic_ns() - max(time.time_ns() - start.start_time_ns, 0)
        self._next_indices = [0] * start.num_rows
        """Index of each row's next step; -1 once the row has ended."""
        self._num_rounds = 0
        self._generations: list[RunningGeneration] = []
        for started in starts:
            try:
                self._generations.append(self._begin(started, model.tokenizer))
            except GenerationExistsError as error:
                # A served generation has taken the id since it was looked up.
                self.fail(Failure(error.code, error.reason, error.message))
                raise

    def _begin(self, started: Started, tokenizer: TextTokenizer) -> RunningGeneration:
        index = GenerationIndex(
            generation_id=started.generation_id,
            trace_id=started.trace_context.trace_id,
            model=self.model.name,
            start_time_ns=started.start_time_ns,
            request_digest=started.request_digest,
            labels=started.labels,
            prompt_preview=started.prompt[:PREVIEW_CHARACTERS],
            num_prompt_tokens=len(started.prompt_token_ids),
            owner=started.owner,
        )
        # Nobody reads the stream here: the other process has its output.
        record = create_record(self._journal, self._forms, index, started)
        return RunningGeneration(
            started,
            arrival_ns=self._arrival_ns,
            grace_s=0.0,
            journal=record,
            tokenizer=tokenizer,
        )

    def record_step(self, step: BatchStep) -> None:
        """Record the tokens of a step.

        Raises:
            InvalidRequestError: a row has ended, or misses a step.
        """
        cost = step.cost._replace(ready_ns=self._arrival_ns + step.cost.ready_ns)
        turn = Turn(cost)
        num_sequences = self.start.decoding.num_return_sequences
        for row, decision, finish in step.steps:
            expected = self._next_indices[row]
            if step.index != expected:
                raise InvalidRequestError(
                    FieldViolation(
                        "step.index",
                        f"is {step.index} for row {row}, "
                        + (f"not {expected}" if expected >= 0 else "which has ended"),
                    )
                )
            self._next_indices[row] = -1 if finish is not None else step.index + 1
            prompt_index, sequence_index = divmod(row, num_sequences)
            running = self._generations[prompt_index]
            length = len(running.started.prompt_token_ids) + step.index
            made = StepMade(running.id, sequence_index, step.index, decision, length, finish)
            running.record_step(made, turn)

    def record_round(self, made: BatchRound) -> None:
        """Record a round of the beam searches.

        Raises:
            InvalidRequestError: the batch searches not, or a round is missing.
        """
        if self.start.decoding.strategy is not Strategy.BEAM_SEARCH:
            raise InvalidRequestError(FieldViolation("round", "belongs to no beam search"))
        if made.index != self._num_rounds:
            raise InvalidRequestError(
                FieldViolation("round.index", f"is {made.index}, not {self._num_rounds}")
            )
        self._num_rounds += 1
        cost = made.cost._replace(ready_ns=self._arrival_ns + made.cost.ready_ns)
        for prompt_index, continuations in made.continuations.items():
            running = self._generations[prompt_index]
            length = len(running.started.prompt_token_ids) + made.index
            running.record_round(BeamRoundMade(running.id, made.index, continuations, length), cost)

    def finish(self, end: BatchEnd) -> None:
        """Record the end of all generations."""
        if end.prefill_end_ns:
            begin, finished = (
                self._arrival_ns + time_ns for time_ns in (end.prefill_begin_ns, end.prefill_end_ns)
            )
            for running in self._generations:
                running.record_prefill(Prefilled(running.id, begin, finished, 1))
        for running, scores in zip(self._generations, self._split_scores(end.scores), strict=True):
            running.note_scores(scores)
        reason, failure = end.finish_reason, end.failure
        if end.num_lost:
            reason = FinishReason.FAILED
            failure = Failure(
                Code.DATA_LOSS,
                "RECORD_INCOMPLETE",
                f"{end.num_lost} steps are not on record, as the recorder's buffer was full; the "
                "sequences were longer",
            )
        self._end(reason, failure, self._arrival_ns + end.elapsed_ns)

    def _split_scores(self, scores: list[float]) -> Sequence[list[float]]:
        each = self.start.decoding.num_return_sequences
        return [scores[i * each : (i + 1) * each] for i in range(len(self._generations))]

    def fail(self, failure: Failure) -> None:
        """End all generations that have not ended, as failed."""
        self._end(FinishReason.FAILED, failure, time.monotonic_ns())

    def interrupt(self) -> None:
        """End all generations that have not ended, as their recorder is gone or the server ends."""
        self._end(FinishReason.INTERRUPTED, None, time.monotonic_ns())

    def _end(self, reason: FinishReason | None, failure: Failure | None, ended_ns: int) -> None:
        for running in self._generations:
            if running.done.is_set():
                continue
            if reason is None and not running.complete:
                # `generate` returned, although a criterion of its own making ended a sequence.
                running.finish(FinishReason.STOP, ended_ns=ended_ns)
            else:
                running.finish(reason, failure, ended_ns=ended_ns)
            self._record_call(running, reason, failure, ended_ns)

    def _record_call(
        self,
        running: RunningGeneration,
        reason: FinishReason | None,
        failure: Failure | None,
        ended_ns: int,
    ) -> None:
        """Record a call, which gives the root of the generation's spans."""
        code = _CALL_CODES.get(reason) if reason is not None else None
        if failure is not None:
            code = failure.code
        started = running.started
        call = CallRecord(
            trace_context=started.trace_context,
            method=METHOD,
            start_time_ns=started.start_time_ns,
            end_time_ns=started.start_time_ns + max(ended_ns - self._arrival_ns, 0),
            status_code=0 if code is None else code.value,
            generation_id=running.id,
            server_address="",
            server_port=None,
        )
        self._journal.record_call(running.id, encode_call(call))
