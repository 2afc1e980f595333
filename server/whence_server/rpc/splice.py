"""Builds stream messages around stored bytes: a step is serialised once in its life.

A message is a tag, a length and its bytes (protobuf encoding, "Length-Delimited Records"), so
an envelope can be written around entries that are never parsed. A test holds every envelope
against the generated classes.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from google.protobuf.message import DecodeError, Message

from whence.v1 import generation_pb2, step_pb2, trace_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import RecordDamagedError
from whence_server.domain.varint import encode_varint

_EVENT_FIELDS = generation_pb2.GenerationEvent.DESCRIPTOR.fields_by_name
_KINDS: dict[EntryKind, str] = {
    EntryKind.STARTED: "started",
    EntryKind.PROMPT_STEP: "prompt_steps",
    EntryKind.STEP: "steps",
    EntryKind.BEAM_ROUND: "beam_round",
    EntryKind.FINISHED: "finished",
}
_BATCHED = frozenset({EntryKind.PROMPT_STEP, EntryKind.STEP})
_MESSAGES: dict[EntryKind, type[Message]] = {
    EntryKind.STARTED: generation_pb2.GenerationStarted,
    EntryKind.PROMPT_STEP: step_pb2.Step,
    EntryKind.STEP: step_pb2.Step,
    EntryKind.BEAM_ROUND: generation_pb2.BeamRound,
    EntryKind.FINISHED: generation_pb2.GenerationFinished,
}


def require_readable(entries: Sequence[Entry]) -> None:
    """Parse what was on disk: no client could read a message around damaged bytes.

    Raises:
        RecordDamagedError: an entry is no message of its kind.
    """
    for entry in entries:
        try:
            _MESSAGES[entry.kind].FromString(entry.payload)
        except (DecodeError, KeyError) as error:
            raise RecordDamagedError(
                entry.generation_id, f"its entry {entry.offset} is no message: {error}"
            ) from error


def _tag(field_number: int, wire_type: int) -> bytes:
    return encode_varint(field_number << 3 | wire_type)


_VARINT, _LEN = 0, 2
_FIRST = _tag(_EVENT_FIELDS["first_offset"].number, _VARINT)
_LAST = _tag(_EVENT_FIELDS["last_offset"].number, _VARINT)
_CONTENT = {kind: _tag(_EVENT_FIELDS[name].number, _LEN) for kind, name in _KINDS.items()}
_STEP = _tag(generation_pb2.StepBatch.DESCRIPTOR.fields_by_name["steps"].number, _LEN)
_RESPONSE = _tag(generation_pb2.GenerateResponse.DESCRIPTOR.fields_by_name["event"].number, _LEN)
_WATCH = trace_pb2.WatchGenerationsResponse.DESCRIPTOR.fields_by_name
_WATCH_ID = _tag(_WATCH["generation_id"].number, _LEN)
_WATCH_POSITION = _tag(_WATCH["position"].number, _LEN)
_WATCH_EVENT = _tag(_WATCH["event"].number, _LEN)


def _delimited(tag: bytes, content: bytes) -> bytes:
    return tag + encode_varint(len(content)) + content


class Event(NamedTuple):
    """A serialised GenerationEvent, and the last of the entries that it holds."""

    last: Entry
    content: bytes


def events(entries: Sequence[Entry]) -> Iterator[Event]:
    """Entries of one generation as events, steps in a row as one batch."""
    for kind, run in groupby(entries, key=lambda entry: entry.kind):
        if kind in _BATCHED:
            batch = list(run)
            yield Event(batch[-1], _event(batch))
        else:
            for entry in run:
                yield Event(entry, _event([entry]))


def _event(run: list[Entry]) -> bytes:
    kind = run[0].kind
    if kind in _BATCHED:
        content = b"".join(_delimited(_STEP, entry.payload) for entry in run)
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


def responses(entries: Sequence[Entry]) -> Iterator[bytes]:
    """Entries as serialised GenerateResponses; ResumeGenerationResponse has the same form."""
    for event in events(entries):
        yield _delimited(_RESPONSE, event.content)


_LIST_STEPS = trace_pb2.ListStepsResponse.DESCRIPTOR.fields_by_name
_LISTED = _tag(_LIST_STEPS["steps"].number, _LEN)
_NEXT_PAGE = _tag(_LIST_STEPS["next_page_token"].number, _LEN)


def list_steps_response(entries: Sequence[Entry], next_page_token: str) -> bytes:
    """Return one serialised ListStepsResponse around stored steps."""
    steps = b"".join(_delimited(_LISTED, entry.payload) for entry in entries)
    return steps + (_delimited(_NEXT_PAGE, next_page_token.encode()) if next_page_token else b"")


def watch_response(event: Event, position: str) -> bytes:
    """One serialised WatchGenerationsResponse."""
    return (
        _delimited(_WATCH_ID, event.last.generation_id.encode())
        + _delimited(_WATCH_POSITION, position.encode())
        + _delimited(_WATCH_EVENT, event.content)
    )
