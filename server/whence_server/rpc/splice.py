"""Stream messages built around stored bytes: a step is serialised only once.

An embedded message is a tag, a length and its bytes (protobuf encoding, "Length-Delimited
Records"), so an envelope can be written around entries without parsing them. A test compares every
envelope with the generated classes.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1 import generation_pb2, trace_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import RecordDamagedError
from whence_server.domain.varint import encode_varint
from whence_server.journal.entry_messages import MESSAGES

_EVENT_FIELDS = generation_pb2.GenerationEvent.DESCRIPTOR.fields_by_name
_KINDS: dict[EntryKind, str] = {
    EntryKind.STARTED: "started",
    EntryKind.PROMPT_STEP: "prompt_steps",
    EntryKind.STEP: "steps",
    EntryKind.BEAM_ROUND: "beam_round",
    EntryKind.FINISHED: "finished",
}
_BATCHED = frozenset({EntryKind.PROMPT_STEP, EntryKind.STEP})


def require_readable(entries: Sequence[Entry]) -> None:
    """Raise if an entry cannot be parsed: no client could read a message around it.

    Raises:
        RecordDamagedError: an entry is not a message of its kind.
    """
    for entry in entries:
        try:
            MESSAGES[entry.kind].FromString(entry.payload)
        except (DecodeError, KeyError) as error:
            raise RecordDamagedError(
                entry.generation_id, f"its entry {entry.offset} is not a message: {error}"
            ) from error


def _encode_tag(field_number: int, wire_type: int) -> bytes:
    return encode_varint(field_number << 3 | wire_type)


_VARINT, _LEN = 0, 2
_FIRST = _encode_tag(_EVENT_FIELDS["first_offset"].number, _VARINT)
_LAST = _encode_tag(_EVENT_FIELDS["last_offset"].number, _VARINT)
_CONTENT = {kind: _encode_tag(_EVENT_FIELDS[name].number, _LEN) for kind, name in _KINDS.items()}
_STEP = _encode_tag(generation_pb2.StepBatch.DESCRIPTOR.fields_by_name["steps"].number, _LEN)
_RESPONSE = _encode_tag(
    generation_pb2.GenerateResponse.DESCRIPTOR.fields_by_name["event"].number, _LEN
)
_UNRECORDED = _encode_tag(
    generation_pb2.ResumeGenerationResponse.DESCRIPTOR.fields_by_name[
        "num_unrecorded_offsets"
    ].number,
    _VARINT,
)
_LEFT_OUT = _encode_tag(
    generation_pb2.ResumeGenerationResponse.DESCRIPTOR.fields_by_name["content"].number, _VARINT
)
_WATCH = trace_pb2.WatchGenerationsResponse.DESCRIPTOR.fields_by_name
_WATCH_ID = _encode_tag(_WATCH["generation_id"].number, _LEN)
_WATCH_POSITION = _encode_tag(_WATCH["position"].number, _LEN)
_WATCH_EVENT = _encode_tag(_WATCH["event"].number, _LEN)


def _encode_field(tag: bytes, content: bytes) -> bytes:
    return tag + encode_varint(len(content)) + content


class Event(NamedTuple):
    """A serialised GenerationEvent, and its last entry."""

    last: Entry
    content: bytes


def build_events(entries: Sequence[Entry]) -> Iterator[Event]:
    """Yield events for the entries of one generation; consecutive steps are one event."""
    for kind, run in groupby(entries, key=lambda entry: entry.kind):
        if kind in _BATCHED:
            batch = list(run)
            yield Event(batch[-1], _build_event(batch))
        else:
            for entry in run:
                yield Event(entry, _build_event([entry]))


def _build_event(run: list[Entry]) -> bytes:
    kind = run[0].kind
    if kind in _BATCHED:
        content = b"".join(_encode_field(_STEP, entry.payload) for entry in run)
    else:
        content = run[0].payload
    return b"".join(
        (
            _FIRST,
            encode_varint(run[0].offset),
            _LAST,
            encode_varint(run[-1].offset),
            _CONTENT[kind],
            encode_varint(len(content)),
            content,
        )
    )


def build_responses(
    entries: Sequence[Entry], after_offset: int = 0, content: int = 0
) -> Iterator[bytes]:
    """Yield serialised GenerateResponses, whose form ResumeGenerationResponse shares.

    Args:
        entries: entries of one generation.
        content: for a ResumeGenerationResponse, the content policy by which the entries lack
            content; 0 if they are whole.
        after_offset: last offset that the reader has. If FINISHED is no later, the record ends
            before it, and a ResumeGenerationResponse says by how much.
    """
    for event in build_events(entries):
        response = _encode_field(_RESPONSE, event.content)
        if event.last.kind is EntryKind.FINISHED and event.last.offset <= after_offset:
            response += _UNRECORDED + encode_varint(after_offset - event.last.offset + 1)
        if content:
            response += _LEFT_OUT + encode_varint(content)
        yield response


_LIST_STEPS = trace_pb2.ListStepsResponse.DESCRIPTOR.fields_by_name
_LISTED = _encode_tag(_LIST_STEPS["steps"].number, _LEN)
_NEXT_PAGE = _encode_tag(_LIST_STEPS["next_page_token"].number, _LEN)


def build_list_steps_response(entries: Sequence[Entry], next_page_token: str) -> bytes:
    """Return one serialised ListStepsResponse around stored steps."""
    steps = b"".join(_encode_field(_LISTED, entry.payload) for entry in entries)
    return steps + (_encode_field(_NEXT_PAGE, next_page_token.encode()) if next_page_token else b"")


def build_watch_position(position: str) -> bytes:
    """Return one serialised WatchGenerationsResponse without an event."""
    return _encode_field(_WATCH_POSITION, position.encode())


def build_watch_response(event: Event, position: str) -> bytes:
    """Return one serialised WatchGenerationsResponse."""
    return (
        _encode_field(_WATCH_ID, event.last.generation_id.encode())
        + _encode_field(_WATCH_POSITION, position.encode())
        + _encode_field(_WATCH_EVENT, event.content)
    )
