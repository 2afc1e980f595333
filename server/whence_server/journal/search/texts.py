"""Texts of a generation as they are on record, and reading them from the database."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import EntryKind
from whence_server.journal.search.passages import Place

_STARTED = "SELECT payload FROM entries WHERE writer = ? AND position = ?"
_LAST = """
    SELECT kind, payload FROM entries WHERE writer = ? AND generation = ?
    ORDER BY "offset" DESC LIMIT 1
"""
_STEPS = f"""
    SELECT "offset", payload FROM entries WHERE writer = ? AND generation = ? AND "offset" > ?
    AND kind = {EntryKind.STEP:d} ORDER BY "offset" LIMIT 256
"""  # noqa: S608  # constants only


class Part(IntEnum):
    """Part of a generation, with the numbers of whence.v1.SearchPart."""

    OUTPUT = 1
    PROMPT = 2


class RecordedText(NamedTuple):
    """One text of a generation."""

    part: Part
    sequence: int
    """Index of the sequence; 0 for the prompt."""
    text: str


def list_texts(started: bytes | None, finished: bytes | None) -> Iterator[RecordedText]:
    """Yield the texts of a generation's STARTED and FINISHED entries, outputs first.

    An entry that is missing or cannot be read has none.
    """
    try:
        if finished:
            for result in GenerationFinished.FromString(finished).sequences:
                yield RecordedText(Part.OUTPUT, result.sequence_index, result.text)
        if started:
            yield RecordedText(Part.PROMPT, 0, GenerationStarted.FromString(started).prompt)
    except DecodeError:
        return


def read_texts(connection: Any, place: Place) -> list[RecordedText]:
    """Return the texts of a generation that has ended."""
    ends = connection.execute(_LAST, place).fetchall()
    finished = next((payload for kind, payload in ends if kind == EntryKind.FINISHED), None)
    return list(list_texts(read_started(connection, place), finished))


def read_started(connection: Any, place: Place) -> bytes | None:
    """Return the payload of a generation's STARTED entry; None if it is gone."""
    rows = connection.execute(_STARTED, place).fetchall()
    return bytes(rows[0][0]) if rows and rows[0][0] is not None else None


def find_step(connection: Any, place: Place, sequence: int, byte: int) -> int | None:
    """Return the index of the step whose token has a byte of a sequence's text.

    None if no step has it: where the content policy keeps the ranges of tokens out of the record.
    """
    offset = 0
    while rows := connection.execute(_STEPS, (*place, offset)).fetchall():
        for _, payload in rows:
            if payload is None:
                return None
            try:
                step = Step.FromString(payload)
            except DecodeError:
                return None
            is_own = step.sequence_index == sequence
            if is_own and step.text_begin_byte <= byte < step.text_end_byte:
                return step.index
        offset = rows[-1][0]
    return None
