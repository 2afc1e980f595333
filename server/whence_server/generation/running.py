"""One running generation, whose decisions become text, steps and journal entries."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from whence_server import logs
from whence_server.domain.chat import OutputForms
from whence_server.domain.decoding import FinishReason, Strategy
from whence_server.domain.engine import (
    Admit,
    BeamRoundMade,
    BeamSteps,
    Cost,
    Prefilled,
    PromptScored,
    Replay,
    StepMade,
    Turn,
)
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import Code, GenerationFailedError
from whence_server.domain.errors.quoting import may_quote_content
from whence_server.domain.generation import Failure, Finished, SequenceResult, Started
from whence_server.domain.steps import BeamRound, Decision, Step, Timing
from whence_server.domain.upstream import UpstreamReport
from whence_server.generation.constraints import JudgedText
from whence_server.generation.content.record import ContentRecord
from whence_server.generation.occurrences import Occurrences
from whence_server.generation.record_failure import Record
from whence_server.journal.codec import encode_beam_round, encode_finished, encode_step
from whence_server.journal.rows import PREVIEW_CHARACTERS, FinishIndex
from whence_server.text.output_reading import read_output
from whence_server.text.sequence import SequenceText

_log = logging.getLogger(__name__)

# Status codes by the engine's reasons for a failure; all other reasons are INTERNAL.
_FAILURE_CODES = {
    "NO_TOKEN_LEFT": Code.INVALID_ARGUMENT,
    "CONSTRAINT_FAILED": Code.INVALID_ARGUMENT,
    "OUT_OF_MEMORY": Code.RESOURCE_EXHAUSTED,
}


@dataclass(slots=True)
class _Sequence:
    """State of one sequence."""

    text: SequenceText
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop: str = ""
    score: float | None = None
    judged: JudgedText = field(default_factory=JudgedText)
    special_tokens: list[tuple[int, str]] = field(default_factory=list)
    """Special tokens of a chat's output, each as its place in the text's bytes, and its text."""


class TokenTexts(Protocol):
    """Texts of tokens, as a tokenizer gives them."""

    def make_sequence_text(self, stop: Sequence[str] = ()) -> SequenceText:
        """Return the empty text of a new sequence, which ends before the first stop string."""

    def get_token_text(self, token_id: int) -> str:
        """Return one token's own text."""

    def is_special(self, token_id: int) -> bool:
        """Return whether the token adds no text to an output."""


class RunningGeneration:
    """Recorder of one generation's steps and of its finish.

    Attributes:
        started: properties that were fixed before the first token.
        arrival_ns: CLOCK_MONOTONIC time of the request's arrival; all durations start there.
        num_readers: number of calls that follow the generation now, and keep it running.
        grace_s: time for which the generation goes on without a reader.
        num_deaths: number of deaths of the engine while it ran this generation.
        occurrences: records what happens to it besides its steps and its finish.
        num_prompt_tokens_read: number of the prompt's tokens that the engine which runs now has
            read; None until it begins.
        was_stopped: True once it was taken out of the engine to wait for its reader.
        done: set when FINISHED is appended.
    """

    def __init__(
        self,
        started: Started,
        *,
        arrival_ns: int,
        grace_s: float,
        journal: Record,
        tokenizer: TokenTexts,
    ) -> None:
        self.started = started
        self.arrival_ns = arrival_ns
        self.grace_s = grace_s
        self.num_readers = 0
        self.num_deaths = 0
        self.num_prompt_tokens_read: int | None = None
        self.was_stopped = False
        self.done = asyncio.Event()
        self.timers: dict[str, asyncio.TimerHandle] = {}
        self._journal = journal
        self._tokenizer = tokenizer
        self._sequences = [
            _Sequence(tokenizer.make_sequence_text(started.decoding.stop))
            for _ in range(started.decoding.num_return_sequences)
        ]
        self._prompt_text = tokenizer.make_sequence_text()
        self._num_prompt_steps = 0
        self.occurrences = Occurrences(
            journal, started, arrival_ns, lambda: self.num_generated_tokens
        )
        self._rounds: list[int] = []
        """Hash of the outcome of each recorded beam search round."""
        self._num_prefill_chunks: int | None = None
        self._num_cached_prompt_tokens: int | None = None
        self._prefill_started_ns: int | None = None
        self._prefill_finished_ns: int | None = None
        self._report: UpstreamReport | None = None

    @property
    def id(self) -> str:
        """The generation's id."""
        return self.started.generation_id

    @property
    def is_recorded(self) -> bool:
        """True if the journal has the generation."""
        return not self.started.unrecorded_reason

    @property
    def waiting(self) -> bool:
        """True until the engine has read the prompt completely."""
        return self._prefill_finished_ns is None

    @property
    def num_generated_tokens(self) -> int:
        """Number of recorded tokens of all sequences; for a search that runs, of rounds."""
        return sum(len(s.token_ids) for s in self._sequences) or len(self._rounds)

    @property
    def num_used_tokens(self) -> int:
        """Number of tokens of the prompt, and of the steps of all sequences or beams."""
        # Each round of a search made a token for each of its beams, of which few are returned.
        num_searched = len(self._rounds) * self.started.decoding.num_rows
        num_generated = max(self._count_generated_tokens(), self.num_generated_tokens, num_searched)
        return self._count_prompt_tokens() + num_generated

    def make_admission(self) -> Admit:
        """Return the message that starts the generation, or continues it after recorded steps."""
        # A beam search has no sequences before its end, so that it starts again.
        is_search = self.started.decoding.strategy is Strategy.BEAM_SEARCH
        begun = not is_search and any(sequence.token_ids for sequence in self._sequences)
        replays = [
            Replay(index, sequence.token_ids)
            for index, sequence in enumerate(self._sequences)
            if begun and sequence.finish_reason is None
        ]
        return Admit(
            self.id,
            list(self.started.prompt_token_ids),
            self.started.decoding,
            self.started.trace,
            replays,
            "" if self.started.adapter is None else self.started.adapter.name,
            caller=self.started.owner,
        )

    def record_prompt(self, scored: PromptScored) -> Iterator[None]:
        """Record the steps of the prompt itself, one for each `next`.

        After an engine's death the prompt is read again, and recorded steps are skipped.
        """
        last = len(self.started.prompt_token_ids) - 1
        for index, decision in enumerate(scored.decisions, scored.first_index):
            if index < self._num_prompt_steps:
                continue
            piece = self._prompt_text.push(decision.token_id, last=index == last)
            step = Step(0, index, decision, piece.text, piece.begin_byte, piece.end_byte, None)
            self._journal.append(self.id, EntryKind.PROMPT_STEP, encode_step(step))
            self._num_prompt_steps += 1
            yield

    def record_prefill(self, prefilled: Prefilled) -> None:
        """Keep the times of the first prefill."""
        self.num_prompt_tokens_read = len(self.started.prompt_token_ids)
        if self._prefill_finished_ns is not None:
            return
        self._prefill_started_ns = prefilled.started_ns
        self._prefill_finished_ns = prefilled.finished_ns
        self._num_prefill_chunks = prefilled.num_chunks
        self._num_cached_prompt_tokens = prefilled.num_cached_tokens

    def record_step(self, made: StepMade, turn: Turn) -> bool:
        """Record one step; return whether a stop string ended the sequence with it.

        Steps that the engine made beyond the end of a sequence are dropped: they are neither
        recorded nor counted.
        """
        sequence = self._sequences[made.sequence_index]
        if sequence.finish_reason is not None:
            return False
        if self.was_stopped and made.index != len(sequence.token_ids):
            # Made before the engine took note of the stop.
            return False
        timing = self._make_timing(turn.cost, made.context_length)
        self._record(made.sequence_index, made.index, made.decision, timing, made.finish)
        sequence.judged.note(sequence.text.end_byte, made.constraint_complete)
        return made.finish is None and sequence.finish_reason is not None

    def record_round(self, made: BeamRoundMade, cost: Cost) -> bool:
        """Record one round of a beam search; return whether it is new.

        After an engine's death the search starts again. Its rounds must equal the recorded ones.

        Raises:
            GenerationFailedError: the round differs from the recorded one.
        """
        outcome = [(c.parent, c.token_id) for c in made.continuations if c.kept or c.finished]
        if made.index < len(self._rounds):
            if self._rounds[made.index] != hash(tuple(outcome)):
                raise GenerationFailedError(
                    "SEARCH_DIVERGED",
                    f"after the engine's restart, round {made.index} of the beam search differs "
                    "from the recorded one: scores differed by less than rounding errors",
                )
            return False
        self._rounds.append(hash(tuple(outcome)))
        timing = self._make_timing(cost, made.context_length)
        beam_round = BeamRound(made.index, made.continuations, timing)
        self._journal.append(self.id, EntryKind.BEAM_ROUND, encode_beam_round(beam_round))
        return True

    def record_search(self, won: BeamSteps) -> Iterator[None]:
        """Record steps of a sequence that a beam search returns, one for each `next`.

        After an engine's death the search starts again, and recorded steps are skipped.
        """
        sequence = self._sequences[won.sequence_index]
        sequence.score = won.score
        last = won.first_index + len(won.steps) - 1
        for index, step in enumerate(won.steps, won.first_index):
            if index < len(sequence.token_ids):
                continue
            timing = self._make_timing(step.cost, step.context_length)
            finish = won.finish if index == last else None
            self._record(won.sequence_index, index, step.decision, timing, finish)
            sequence.judged.note(sequence.text.end_byte, won.constraint_complete)
            yield

    def _make_timing(self, cost: Cost, context_length: int) -> Timing:
        return Timing(
            cost.ready_ns - self.arrival_ns,
            cost.forward_ns,
            cost.select_ns,
            cost.batch_size,
            context_length,
        )

    def _record(
        self,
        sequence_index: int,
        index: int,
        decision: Decision,
        timing: Timing,
        finish: FinishReason | None,
    ) -> None:
        """Record one step; end the sequence at a stop string, or if `finish` is set."""
        sequence = self._sequences[sequence_index]
        piece = sequence.text.push(decision.token_id, last=finish is not None)
        sequence.token_ids.append(decision.token_id)
        sequence.logprob += decision.logprob or 0.0
        if self.started.chat is not None and self._tokenizer.is_special(decision.token_id):
            name = self._tokenizer.get_token_text(decision.token_id)
            sequence.special_tokens.append((piece.end_byte, name))
        step = Step(
            sequence_index,
            index,
            decision,
            piece.text,
            piece.begin_byte,
            piece.end_byte,
            timing,
        )
        self._journal.append(self.id, EntryKind.STEP, encode_step(step))
        if piece.stop is not None:
            sequence.finish_reason = FinishReason.STOP
            sequence.stop = piece.stop
        elif finish is not None:
            sequence.finish_reason = finish
            if finish is FinishReason.STOP and self._is_stop_token(decision.token_id):
                sequence.stop = self._tokenizer.get_token_text(decision.token_id)
        if sequence.finish_reason is not None:
            # The text of a stop token is in the output already; a stop string is cut off.
            self._end_sequence(sequence_index, piece.stop or "")

    def _end_sequence(self, index: int, cut: str) -> None:
        """Let the record settle what waits for more text of a sequence, and a text cut off it."""
        if isinstance(self._journal, ContentRecord):
            self._journal.end_sequence(self.id, index, cut)

    def _is_stop_token(self, token_id: int) -> bool:
        # A generation of another process may have been stopped by code of its own.
        return self.started.recorded is None or token_id in self.started.decoding.stop_token_ids

    def note_scores(self, scores: Sequence[float]) -> None:
        """Keep the final scores of the sequences, where they are not known from their steps."""
        for sequence, score in zip(self._sequences, scores, strict=False):
            sequence.score = score

    @property
    def complete(self) -> bool:
        """True if every sequence has ended."""
        return all(s.finish_reason is not None for s in self._sequences)

    def finish(
        self,
        reason: FinishReason | None = None,
        failure: Failure | None = None,
        *,
        ended_ns: int | None = None,
    ) -> None:
        """Write FINISHED, once.

        Args:
            reason: reason for the end of sequences that have none; None records the first
                sequence's for the generation.
            failure: error that ended the generation.
            ended_ns: CLOCK_MONOTONIC time of the end; None for now.
        """
        if self.done.is_set():
            return
        for timer in self.timers.values():
            timer.cancel()
        now_ns = time.monotonic_ns() if ended_ns is None else ended_ns
        elapsed_ns = now_ns - self.arrival_ns
        queue_end = self._prefill_started_ns or now_ns
        prefill_end = self._prefill_finished_ns or now_ns
        results = tuple(self._make_result(i, reason) for i in range(len(self._sequences)))
        num_generated_tokens = self._count_generated_tokens()
        finished = Finished(
            sequences=results,
            finish_reason=reason or results[0].finish_reason,
            num_prompt_tokens=self._count_prompt_tokens(),
            num_generated_tokens=num_generated_tokens,
            queue_ns=queue_end - self.arrival_ns,
            prefill_ns=max(prefill_end - queue_end, 0),
            decode_ns=max(now_ns - prefill_end, 0),
            end_time_ns=self.started.start_time_ns + elapsed_ns,
            failure=failure,
            num_prefill_chunks=self._num_prefill_chunks,
            num_cached_prompt_tokens=self._num_cached_prompt_tokens,
            upstream=self._report,
        )
        index = FinishIndex(
            finished.finish_reason, num_generated_tokens, results[0].text[:PREVIEW_CHARACTERS]
        )
        self._journal.finish(self.id, encode_finished(finished), index)
        self.done.set()
        self._log_finish(finished)

    def _log_finish(self, finished: Finished) -> None:
        context = self.started.trace_context
        failure = finished.failure
        _log.log(
            logging.INFO if failure is None else logging.WARNING,
            "%s: %d prompt tokens, %d generated%s",
            finished.finish_reason.name,
            finished.num_prompt_tokens,
            finished.num_generated_tokens,
            "" if failure is None else f"; {describe_failure(failure, self.started)}",
            extra={
                logs.TRACE_ID: context.trace_id,
                logs.SPAN_ID: context.span_id,
                logs.GENERATION_ID: self.id,
            },
        )

    def fail(
        self,
        reason: str,
        message: str,
        code: Code | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """Write FINISHED with reason FAILED and the status of the error.

        Args:
            reason: reason, UPPER_SNAKE_CASE.
            message: text for people.
            code: status; None for the reason's own.
            retry_after_s: seconds after which a caller may try again; None if that is not known.
        """
        code = code or _FAILURE_CODES.get(reason, Code.INTERNAL)
        self.finish(FinishReason.FAILED, Failure(code, reason, message, retry_after_s))

    def _count_prompt_tokens(self) -> int:
        return len(self.started.prompt_token_ids)

    def _count_generated_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self._sequences)

    def _make_result(self, index: int, reason: FinishReason | None) -> SequenceResult:
        sequence, chat = self._sequences[index], self.started.chat
        text = sequence.text.text
        forms = OutputForms() if chat is None else chat.forms
        parts = read_output(text, sequence.special_tokens, forms, f"{self.id}/{index}")
        return SequenceResult(
            sequence_index=index,
            text=text,
            token_ids=tuple(sequence.token_ids),
            finish_reason=sequence.finish_reason or reason or FinishReason.INTERRUPTED,
            stop=sequence.stop,
            logprob=sequence.logprob,
            score=sequence.score,
            constraint_complete=sequence.judged.judge(sequence.text.text)
            if self.started.decoding.constraint is not None
            else None,
            tool_calls=parts.tool_calls,
            reasoning=parts.reasoning,
        )


def describe_failure(failure: Failure, started: Started) -> str:
    """Return a failure for the log, which never has content."""
    if may_quote_content(failure.reason, recorded=started.recorded is not None):
        return failure.reason
    return f"{failure.reason}: {failure.message}"
