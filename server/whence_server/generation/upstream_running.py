"""One running generation of an upstream, whose messages become steps and journal entries."""

from collections.abc import Sequence
from dataclasses import replace

from whence_server.domain.chat import ChatInput, ParsedReasoning, ParsedToolCall, ToolCall
from whence_server.domain.decoding import FinishReason
from whence_server.domain.engine import Admit, Prefilled
from whence_server.domain.entries import EntryKind
from whence_server.domain.generation import SequenceResult, Started
from whence_server.domain.steps import Timing
from whence_server.domain.upstream import UpstreamDecision, UpstreamPiece, UpstreamReport
from whence_server.generation.record_failure import Record
from whence_server.generation.running import RunningGeneration
from whence_server.journal.observation_codec import encode_upstream_step
from whence_server.text.given import GivenText
from whence_server.text.tokenizer import TextTokenizer


class UpstreamGeneration(RunningGeneration):
    """Recorder of one generation of an upstream.

    The text is the upstream's own. Stop strings are searched in it too, for an upstream that does
    not stop at them.
    """

    def __init__(
        self,
        started: Started,
        *,
        arrival_ns: int,
        grace_s: float,
        journal: Record,
        tokenizer: TextTokenizer | None,
        sent: str | ChatInput | None,
    ) -> None:
        """Create a recorder.

        Args:
            started: properties that were fixed before the first token.
            arrival_ns: CLOCK_MONOTONIC time of the request's arrival.
            grace_s: time for which the generation goes on without a reader.
            journal: holder of the generation's entries.
            tokenizer: the model's tokenizer; None if it is not known.
            sent: text or conversation that the upstream is sent in place of token ids.
        """
        self._texts = _GivenTexts(tokenizer)
        super().__init__(
            started,
            arrival_ns=arrival_ns,
            grace_s=grace_s,
            journal=journal,
            tokenizer=self._texts,
        )
        num_sequences = started.decoding.num_return_sequences
        self._sent = sent
        self._given = self._texts.made[:num_sequences]
        self._num_steps = [0] * num_sequences
        self._lacks_logprob = [False] * num_sequences
        self._tool_calls: list[tuple[ToolCall, ...]] = [()] * num_sequences
        self._reasoning: list[list[str]] = [[] for _ in range(num_sequences)]

    @property
    def num_generated_tokens(self) -> int:
        """Number of recorded steps of all sequences."""
        return sum(self._num_steps)

    def make_admission(self) -> Admit:
        """Return the message that starts the generation."""
        started = self.started
        return Admit(
            self.id,
            list(started.prompt_token_ids),
            started.decoding,
            started.trace,
            prompt=self._sent,
            caller=started.owner,
            trace_context=started.trace_context,
            upstream_parameters_json=started.upstream_parameters_json,
        )

    def record_prefill(self, prefilled: Prefilled) -> None:
        """Keep the time until the first message; nobody tells the passes that read the prompt."""
        super().record_prefill(prefilled)
        self._num_prefill_chunks = self._num_cached_prompt_tokens = None

    def record_piece(self, piece: UpstreamPiece) -> bool:
        """Record a message; return whether a stop string in it ended the sequence.

        What comes beyond the end of a sequence is dropped.
        """
        index = piece.sequence_index
        sequence, given = self._sequences[index], self._given[index]
        if sequence.finish_reason is not None:
            return False
        timing = Timing(piece.ready_ns - self.arrival_ns, 0, 0, 0, 0)
        last = len(piece.decisions) - 1 if piece.finish is not None else -1
        for place, (text, decision) in enumerate(zip(piece.texts, piece.decisions, strict=True)):
            self._lacks_logprob[index] |= decision.logprob is None
            stop = self._record_step(index, decision, text, timing, last=place == last)
            if stop is not None:
                sequence.finish_reason, sequence.stop = FinishReason.STOP, stop
                self._tool_calls[index] = piece.tool_calls
                self._end_sequence(index, sequence.stop)
                return piece.finish is None
        if piece.finish is not None:
            if not piece.decisions and given.holds_text:
                # The beginning of a stop string that never came, held back until now.
                self._record_step(index, UpstreamDecision(), "", timing, last=True)
            sequence.finish_reason, sequence.stop = piece.finish, piece.stop
            self._tool_calls[index] = piece.tool_calls
            self._end_sequence(index, sequence.stop)
        return False

    def record_report(self, report: UpstreamReport) -> None:
        """Keep the upstream's statements for the finish."""
        self._report = report
        self._num_cached_prompt_tokens = report.num_cached_prompt_tokens

    def _record_step(
        self, index: int, decision: UpstreamDecision, text: str, timing: Timing, *, last: bool
    ) -> str | None:
        """Record one step; return the stop string that it completed."""
        sequence = self._sequences[index]
        piece = self._given[index].push_text(text, last=last)
        if decision.token_id is not None:
            sequence.token_ids.append(decision.token_id)
            if self.started.chat is not None and self._texts.is_special(decision.token_id):
                name = self._texts.get_token_text(decision.token_id)
                sequence.special_tokens.append((piece.end_byte, name))
        if decision.logprob is not None:
            sequence.logprob += decision.logprob
        if decision.reasoning_text:
            self._reasoning[index].append(decision.reasoning_text)
        step = encode_upstream_step(
            index,
            self._num_steps[index],
            decision,
            piece.text,
            piece.begin_byte,
            piece.end_byte,
            timing,
        )
        self._journal.append(self.id, EntryKind.STEP, step)
        self._num_steps[index] += 1
        return piece.stop

    def _count_prompt_tokens(self) -> int:
        num_known = super()._count_prompt_tokens()
        told = None if self._report is None else self._report.num_prompt_tokens
        return num_known or told or 0

    def _count_generated_tokens(self) -> int:
        told = None if self._report is None else self._report.num_generated_tokens
        # A piece of text can hold several tokens. A reader counts the steps that it received.
        return max(self.num_generated_tokens, told or 0)

    def _make_result(self, index: int, reason: FinishReason | None) -> SequenceResult:
        result = super()._make_result(index, reason)
        reasoning = "".join(self._reasoning[index])
        num_bytes = len(result.text.encode())
        is_whole = len(result.token_ids) == self._num_steps[index]
        # The sum of a part would pass for the logprob of the whole.
        lacks_logprob = self._lacks_logprob[index] or not self._num_steps[index]
        return replace(
            result,
            token_ids=result.token_ids if is_whole else (),
            logprob=None if lacks_logprob else result.logprob,
            constraint_complete=None,
            tool_calls=result.tool_calls
            or tuple(
                ParsedToolCall(call, num_bytes, num_bytes) for call in self._tool_calls[index]
            ),
            reasoning=result.reasoning or (ParsedReasoning(reasoning, 0, 0) if reasoning else None),
        )


class _GivenTexts:
    """Texts of a generation's sequences, in the order in which they were made."""

    def __init__(self, tokenizer: TextTokenizer | None) -> None:
        self._tokenizer = tokenizer
        self.made: list[GivenText] = []

    def make_sequence_text(self, stop: Sequence[str] = ()) -> GivenText:
        self.made.append(GivenText(stop))
        return self.made[-1]

    def get_token_text(self, token_id: int) -> str:
        return "" if self._tokenizer is None else self._tokenizer.get_token_text(token_id)

    def is_special(self, token_id: int) -> bool:
        return self._tokenizer is not None and self._tokenizer.is_special(token_id)
