"""Stored form of a generation whose texts are redacted."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.generation.content.forms import Stored
from whence_server.generation.content.redacted_steps import (
    Place,
    RedactedSequence,
    redact_result,
    redact_step,
)
from whence_server.generation.content.redacted_texts import redact_message
from whence_server.journal.entry_messages import MESSAGES
from whence_server.redaction.stream import Detectors, cut_end

_STEP_KINDS = frozenset({EntryKind.STEP, EntryKind.PROMPT_STEP})
_PROMPT_KINDS = frozenset({EntryKind.STARTED, EntryKind.PROMPT_STEP})


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An entry that waits to be stored.

    Attributes:
        stored: its stored form if nothing in it is redacted.
        places: places of a step's text and of its reasoning; none for an entry of another kind,
            which waits for those before it.
    """

    stored: Stored
    places: tuple[Place, ...] = ()


class RedactedForm:
    """Stored form with marks in the place of what detectors find.

    A step waits until no match can begin in its text any more. Entries after it wait too, so that
    the record has the order of the stream.

    Args:
        detectors: finders of what is not stored.
        num_sequences: number of the generation's sequences.
        request_digest: digest to store in place of the request's own if the request is redacted:
            the own digest tells a short secret to anyone who tries all of them.
    """

    def __init__(self, detectors: Detectors, num_sequences: int, request_digest: str) -> None:
        self._detectors = detectors
        self._request_digest = request_digest
        self._sequences = [RedactedSequence(detectors) for _ in range(num_sequences)]
        self._reasonings = [RedactedSequence(detectors) for _ in range(num_sequences)]
        # The steps of a prompt have its text without the special tokens.
        self._prompt = RedactedSequence(detectors)
        self._waiting: deque[_Waiting] = deque()
        self._prepared: tuple[bytes, Stored] | None = None

    def prepare(self, payload: bytes) -> None:
        """Search the start of a generation ahead of `take`, in any thread."""
        self._prepared = payload, self._make_started(payload)

    def take(self, kind: EntryKind, payload: bytes) -> Sequence[Stored]:
        """Take the next entry of the stream; return the stored entries that are settled by it."""
        if kind not in _PROMPT_KINDS:
            self._prompt.end()
        if kind is EntryKind.FINISHED:
            return self._finish(payload)
        read = self._read_step if kind in _STEP_KINDS else self._read_other
        self._waiting.append(read(kind, payload))
        return self._release()

    def end_sequence(self, index: int, stop: str) -> Sequence[Stored]:
        """Take the end of a sequence; return the stored entries that are settled by it."""
        self._sequences[index].end(stop)
        self._reasonings[index].end()
        return self._release()

    def _read_step(self, kind: EntryKind, payload: bytes) -> _Waiting:
        step = step_pb2.Step.FromString(payload)
        is_prompt = kind is EntryKind.PROMPT_STEP
        sequence = self._prompt if is_prompt else self._sequences[step.sequence_index]
        begin = sequence.num_bytes
        sequence.push(step.text)
        text = Place(sequence, begin, max(sequence.num_bytes, step.text_end_byte))
        # Thousands may wait: the parsed message takes several times the memory.
        return _Waiting(Stored(kind, payload), (text, self._read_reasoning(step)))

    def _read_reasoning(self, step: step_pb2.Step) -> Place:
        reasoning = self._reasonings[step.sequence_index]
        if step.text and not step.reasoning_text and reasoning.num_bytes:
            # The answer begins: it does not wait for more reasoning.
            reasoning.end()
            self._reasonings[step.sequence_index] = reasoning = RedactedSequence(self._detectors)
        begin = reasoning.num_bytes
        reasoning.push(step.reasoning_text)
        return Place(reasoning, begin, reasoning.num_bytes)

    def _read_other(self, kind: EntryKind, payload: bytes) -> _Waiting:
        """Return an entry that has its stored form already."""
        if kind is EntryKind.STARTED:
            prepared, self._prepared = self._prepared, None
            if prepared is not None and prepared[0] == payload:
                return _Waiting(prepared[1])
            return _Waiting(self._make_started(payload))
        message = MESSAGES[kind].FromString(payload)
        if isinstance(message, generation_pb2.BeamRound):
            # Their text is known only if they are returned, and then their steps follow.
            message.ClearField("continuations")
        return _Waiting(Stored(kind, message.SerializeToString()))

    def _make_started(self, payload: bytes) -> Stored:
        message = generation_pb2.GenerationStarted.FromString(payload)
        end = cut_end(self._detectors, message.prompt)
        self._sequences = [RedactedSequence(self._detectors, end) for _ in self._sequences]
        redactions = redact_message(message, self._detectors)
        if any(redaction.field == "prompt" for redaction in redactions):
            message.ClearField("prompt_token_ids")
        if redactions:
            message.request_digest = self._request_digest
        # The text of a given continuation is not searched yet; its ids are in the steps.
        if message.effective_decoding.HasField("forced"):
            message.effective_decoding.forced.tokens.ClearField("token_ids")
        message.redactions.extend(redactions)
        return Stored(EntryKind.STARTED, message.SerializeToString())

    def _release(self) -> list[Stored]:
        """Return the stored forms of the first entries that wait for no more text."""
        settled: list[Stored] = []
        while self._waiting:
            entry = self._waiting[0]
            if not all(place.is_settled for place in entry.places):
                break
            settled.append(_make_stored(entry))
            self._waiting.popleft()
        return settled

    def _finish(self, payload: bytes) -> list[Stored]:
        for sequence in (*self._sequences, *self._reasonings):
            sequence.end()
        finished = generation_pb2.GenerationFinished.FromString(payload)
        for result in finished.sequences:
            redact_result(result, self._sequences[result.sequence_index], self._detectors)
        if finished.HasField("failure"):
            redact_message(finished.failure, self._detectors)
        if finished.HasField("upstream") and redact_message(finished.upstream, self._detectors):
            finished.upstream.ClearField("prompt_token_ids")
        return [*self._release(), Stored(EntryKind.FINISHED, finished.SerializeToString())]


def _make_stored(entry: _Waiting) -> Stored:
    # Most sequences have no range, or none yet: the bytes of their steps are stored as they are.
    if not any(place.is_touched for place in entry.places):
        return entry.stored
    step = step_pb2.Step.FromString(entry.stored.payload)
    redact_step(step, *entry.places)
    return Stored(entry.stored.kind, step.SerializeToString())
