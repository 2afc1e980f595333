"""First and last step of each sequence, read without the steps between them."""

from collections.abc import AsyncIterator, Collection, Iterable
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.step_pb2 import Step
from whence_server.domain.entries import Entry, EntryKind
from whence_server.telemetry.journal import GenerationReader

_FIRST_PAGE = 16
_MAX_PAGE = 512
_STEPS = frozenset({EntryKind.STEP})


class SequenceBounds(NamedTuple):
    """First and last step of a sequence."""

    first: Step
    last: Step


async def read_sequence_bounds(
    journal: GenerationReader, generation_id: str, finished_offset: int, sequences: Collection[int]
) -> dict[int, SequenceBounds]:
    """Read the first and last step of each sequence that has steps, by ascending sequence index.

    Pages are read from both ends of the generation, each larger than the one before, until every
    sequence was seen. A long generation of one sequence costs two short reads.

    Args:
        journal: the journal to read.
        generation_id: the generation.
        finished_offset: offset of its FINISHED entry; all its steps have lower offsets.
        sequences: indices of the sequences to find.
    """
    first: dict[int, Step] = {}
    async for page in _read_pages_forward(journal, generation_id, finished_offset):
        for step in page:
            first.setdefault(step.sequence_index, step)
        if first.keys() >= set(sequences):
            break
    last: dict[int, Step] = {}
    async for page in read_pages_backward(journal, generation_id, finished_offset):
        for step in reversed(page):
            last.setdefault(step.sequence_index, step)
        if last.keys() >= first.keys():
            break
    both = sorted(first.keys() & last.keys())
    return {index: SequenceBounds(first[index], last[index]) for index in both}


async def _read_pages_forward(
    journal: GenerationReader, generation_id: str, finished_offset: int
) -> AsyncIterator[list[Step]]:
    after, size = 0, _FIRST_PAGE
    while True:
        entries = await journal.read(generation_id, after, size, _STEPS)
        entries = [entry for entry in entries if entry.offset < finished_offset]
        if not entries:
            return
        yield _parse_steps(entries)
        after, size = entries[-1].offset, min(2 * size, _MAX_PAGE)


async def read_pages_backward(
    journal: GenerationReader, generation_id: str, before_offset: int
) -> AsyncIterator[list[Step]]:
    """Read a generation's steps below an offset in pages of growing size, the newest page first.

    The steps of a page are in ascending order of offset.

    Raises:
        GenerationNotFoundError: the generation was deleted.
    """
    before, size = before_offset, _FIRST_PAGE
    while before > 1:
        after = max(before - 1 - size, 0)
        entries = await journal.read(generation_id, after, before - 1 - after, _STEPS)
        yield _parse_steps(entry for entry in entries if entry.offset < before)
        before, size = after + 1, min(2 * size, _MAX_PAGE)


def _parse_steps(entries: Iterable[Entry]) -> list[Step]:
    """Parse the steps of entries, without deleted and unreadable ones, which have no span."""
    steps = []
    for entry in entries:
        try:
            if entry.payload:
                steps.append(Step.FromString(entry.payload))
        except DecodeError:
            continue
    return steps
