"""Steps and results of sequences with marks in the place of what the detectors find."""

from collections.abc import Sequence
from typing import NamedTuple

from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.redaction import RedactedRange
from whence_server.generation.content.redacted_texts import convert_redaction, redact_message
from whence_server.redaction.marks import MarkedText
from whence_server.redaction.stream import Detectors, Redactor


class _Border:
    """Search for a match that begins in a text and ends in the sequence that continues it.

    Args:
        detectors: finders of what is redacted.
        before: the text.
    """

    def __init__(self, detectors: Detectors, before: str) -> None:
        self._redactor = Redactor(detectors)
        self._redactor.push(before)
        self._num_before = len(before.encode())
        self._range: RedactedRange | None = None

    def push(self, text: str, *, last: bool) -> bool:
        """Take the next piece of the sequence; return whether no match is open any more."""
        for each in self._redactor.push(text, last=last):
            if each.begin < self._num_before < each.end:
                self._range = RedactedRange(each.kind, 0, each.end - self._num_before)
        return last or self._redactor.settled >= self._num_before

    def cover(self, ranges: Sequence[RedactedRange]) -> list[RedactedRange]:
        """Return ranges of the sequence with that of the match; one that overlaps it extends it."""
        own, others = self._range, list(ranges)
        if own is None:
            return others
        while others and others[0].begin < own.end:
            own = own._replace(end=max(own.end, others.pop(0).end))
        return [own, *others]


class RedactedSequence:
    """Text of one sequence as it grows.

    Args:
        detectors: finders of what is redacted.
        before: end of a text that the sequence continues: a match that begins in it is redacted
            from the sequence's begin on; "" if none can begin there.

    Attributes:
        marked: what is redacted in the text so far.
        num_bytes: bytes of the text so far.
    """

    def __init__(self, detectors: Detectors, before: str = "") -> None:
        self.marked = MarkedText()
        self.num_bytes = 0
        self._redactor = Redactor(detectors)
        self._border = _Border(detectors, before) if before else None
        self._found: list[RedactedRange] = []
        """Ranges that wait for what the border redacts."""
        self._ended = False

    def push(self, text: str) -> None:
        """Take the next piece of the text."""
        if text:
            self.num_bytes += len(text.encode())
            self._search(text)

    def end(self, stop: str = "") -> None:
        """Take the end of the text, and the stop string that was cut off, whose tokens follow."""
        if not self._ended:
            self._ended = True
            self._search(stop, last=True)

    def _search(self, text: str, *, last: bool = False) -> None:
        self._found += self._redactor.push(text, last=last)
        if self._border is not None:
            if not self._border.push(text, last=last):
                return
            self._found = self._border.cover(self._found)
            self._border = None
        self.marked.add(self._found)
        self._found = []

    def touches(self, place: int) -> bool:
        """Return whether anything is redacted before a place."""
        ranges = self.marked.ranges
        return bool(ranges) and ranges[0].begin < place

    def has_settled(self, place: int) -> bool:
        """Return whether nothing more will be redacted before a place."""
        is_known = self._border is None and self._redactor.settled >= place
        return self._ended or is_known or place == 0


class Place(NamedTuple):
    """Place of a piece in a text that grows."""

    sequence: RedactedSequence
    begin: int
    end: int
    """Place that has to be settled before the piece can be stored."""

    @property
    def is_settled(self) -> bool:
        """True if nothing more will be redacted in the piece."""
        return self.sequence.has_settled(self.end)

    @property
    def is_touched(self) -> bool:
        """True if anything is redacted in the piece or before it."""
        return self.sequence.touches(self.end)


def redact_step(step: step_pb2.Step, text: Place, reasoning: Place) -> None:
    """Give a step the text that is stored; remove what tells its token if that is redacted.

    With the model, each number of the decision tells the token: it is enough to try them all.

    Args:
        step: the step.
        text: place of its text in the sequence's.
        reasoning: place of its reasoning in the sequence's.
    """
    marked, thought = text.sequence.marked, reasoning.sequence.marked
    begin_byte, end_byte = step.text_begin_byte, step.text_end_byte
    own = marked.write(step.text, text.begin)
    own_reasoning = thought.write(step.reasoning_text, reasoning.begin)
    redactions = [
        *(convert_redaction(marked, i, "text") for i in marked.find(begin_byte, end_byte)),
        *(
            convert_redaction(thought, i, "reasoning_text")
            for i in thought.find(reasoning.begin, reasoning.end)
        ),
    ]
    if redactions:
        _clear_decision(step)
        step.redactions.extend(redactions)
    step.text, step.reasoning_text = own, own_reasoning
    step.text_begin_byte, step.text_end_byte = marked.move(begin_byte), marked.move(end_byte)


def _clear_decision(step: step_pb2.Step) -> None:
    kept = step_pb2.Step(sequence_index=step.sequence_index, index=step.index)
    if step.HasField("timing"):
        kept.timing.CopyFrom(step.timing)
    if step.HasField("num_chunk_tokens"):
        kept.num_chunk_tokens = step.num_chunk_tokens
    step.CopyFrom(kept)


def redact_result(
    result: generation_pb2.SequenceResult, sequence: RedactedSequence, detectors: Detectors
) -> None:
    """Give a sequence's result the texts that are stored."""
    marked = sequence.marked
    text = marked.write(result.text, 0)
    # Others are in the stop string.
    numbers = marked.find(0, sequence.num_bytes)
    redactions = [convert_redaction(marked, number, "text") for number in numbers]
    # The output was searched as it grew; all other texts are searched by themselves.
    result.text = ""
    redactions += redact_message(result, detectors)
    result.text = text
    for call in result.tool_calls:
        call.text_begin_byte, call.text_end_byte = map(
            marked.move, (call.text_begin_byte, call.text_end_byte)
        )
    if result.HasField("reasoning"):
        reasoning = result.reasoning
        reasoning.text_begin_byte, reasoning.text_end_byte = map(
            marked.move, (reasoning.text_begin_byte, reasoning.text_end_byte)
        )
    if marked.ranges:
        for name in ("token_ids", "logprob", "score"):
            result.ClearField(name)
    result.redactions.extend(redactions)
