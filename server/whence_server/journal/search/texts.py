"""Texts of a generation as they are on record, and reading them from the database."""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.generation_pb2 import GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import EntryKind
from whence_server.journal.search.budget import Budget
from whence_server.journal.search.passages import Place

# Steps with their internals may have some kilobytes each.
_BATCH = 64
_STARTED = "SELECT payload FROM entries WHERE writer = ? AND position = ?"
_LAST = """
    SELECT kind, payload FROM entries WHERE writer = ? AND generation = ?
    ORDER BY "offset" DESC LIMIT 1
"""
_STEPS = f"""
    SELECT "offset", payload FROM entries WHERE writer = ? AND generation = ? AND "offset" > ?
    AND kind = {EntryKind.STEP:d} ORDER BY "offset" LIMIT {_BATCH}
"""  # noqa: S608  # constants only
_LAST_OFFSET = 'SELECT max("offset") FROM entries WHERE writer = ? AND generation = ?'


class Part(IntEnum):
    """Part of a generation, with the numbers of whence.v1.SearchPart."""

    OUTPUT = 1
    PROMPT = 2


MAX_CHARACTERS = {Part.OUTPUT: 100_000, Part.PROMPT: 8_000}
"""Characters that are searched: of an output the first, of a prompt the last."""


class RecordedText(NamedTuple):
    """One text of a generation."""

    part: Part
    sequence: int
    """Index of the sequence; 0 for the prompt."""
    text: str

    @property
    def searched_from(self) -> int:
        """Index of the first character that is searched."""
        if self.part is Part.OUTPUT:
            return 0
        return max(0, len(self.text) - MAX_CHARACTERS[self.part])

    @property
    def searched(self) -> str:
        """The part of the text that is searched."""
        first = self.searched_from
        return self.text[first : first + MAX_CHARACTERS[self.part]]


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


def find_step(
    connection: Any, place: Place, sequence: int, byte: int, budget: Budget
) -> int | None:
    """Return the index of the step whose token has a byte of a sequence's text.

    None if no step has it, where the content policy keeps the ranges of tokens out of the record,
    and if the budget is spent before it is found.
    """
    try:
        offset = _skip_steps(connection, place, sequence, byte)
        while not budget.is_spent:
            steps = _read_steps(connection, place, offset)
            for _, step in steps:
                is_own = step.sequence_index == sequence
                if is_own and step.text_begin_byte <= byte < step.text_end_byte:
                    return step.index
            if not steps:
                return None
            offset = steps[-1][0]
    except DecodeError:
        pass
    return None


def _skip_steps(connection: Any, place: Place, sequence: int, byte: int) -> int:
    """Return an offset before a step that has a byte, near it if the ranges of bytes ascend."""
    ((last,),) = connection.execute(_LAST_OFFSET, place).fetchall()
    low, high = 0, int(last or 0)
    while high - low > _BATCH:
        middle = (low + high) // 2
        steps = _read_steps(connection, place, middle)
        own = next((each for each in steps if each[1].sequence_index == sequence), None)
        if own is None:
            return low
        offset, step = own
        if step.text_begin_byte > byte:
            high = middle
        else:
            low = offset - 1
    return low


def _read_steps(connection: Any, place: Place, after_offset: int) -> list[tuple[int, Step]]:
    """Return the next steps with their offsets.

    Raises:
        DecodeError: one of them is gone or damaged.
    """
    rows = connection.execute(_STEPS, (*place, after_offset)).fetchall()
    if any(payload is None for _, payload in rows):
        raise DecodeError
    return [(int(offset), Step.FromString(bytes(payload))) for offset, payload in rows]
