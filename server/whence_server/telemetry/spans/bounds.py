"""Finds each sequence's first and last step, without reading all that lies between."""

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
    """A sequence's first and last step."""

    first: Step
    last: Step


async def sequence_bounds(
    journal: GenerationReader, generation_id: str, finished_offset: int, sequences: Collection[int]
) -> dict[int, SequenceBounds]:
    """Read the first and last step of each sequence that has any, by ascending index.

    Pages grow from either end of the generation until every sequence was seen, so that a
    long generation of one sequence costs two short reads.

    Args:
        journal: where to read.
        generation_id: whose steps.
        finished_offset: the offset of its FINISHED entry: steps lie below it.
        sequences: the indices of the sequences looked for.
    """
    first: dict[int, Step] = {}
    async for page in _pages_forward(journal, generation_id, finished_offset):
        for step in page:
            first.setdefault(step.sequence_index, step)
        if first.keys() >= set(sequences):
            break
    last: dict[int, Step] = {}
    async for page in pages_backward(journal, generation_id, finished_offset):
        for step in reversed(page):
            last.setdefault(step.sequence_index, step)
        if last.keys() >= first.keys():
            break
    both = sorted(first.keys() & last.keys())
    return {index: SequenceBounds(first[index], last[index]) for index in both}


async def _pages_forward(
    journal: GenerationReader, generation_id: str, finished_offset: int
) -> AsyncIterator[list[Step]]:
    after, size = 0, _FIRST_PAGE
    while True:
        entries = await journal.read(generation_id, after, size, _STEPS)
        entries = [entry for entry in entries if entry.offset < finished_offset]
        if not entries:
            return
        yield _steps_in(entries)
        after, size = entries[-1].offset, min(2 * size, _MAX_PAGE)


async def pages_backward(
    journal: GenerationReader, generation_id: str, before_offset: int
) -> AsyncIterator[list[Step]]:
    """Read a generation's steps below an offset, the newest page first, growing page by page.

    Each page is by ascending offset.

    Raises:
        GenerationNotFoundError: the generation was deleted.
    """
    before, size = before_offset, _FIRST_PAGE
    while before > 1:
        after = max(before - 1 - size, 0)
        entries = await journal.read(generation_id, after, before - 1 - after, _STEPS)
        yield _steps_in(entry for entry in entries if entry.offset < before)
        before, size = after + 1, min(2 * size, _MAX_PAGE)


def _steps_in(entries: Iterable[Entry]) -> list[Step]:
    """Read steps, without those whose content is gone or unreadable: they have no span either."""
    steps = []
    for entry in entries:
        try:
            if entry.payload:
                steps.append(Step.FromString(entry.payload))
        except DecodeError:
            continue
    return steps
