"""Steps of a generation, read again from the journal in pieces that the event loop can bear."""

import asyncio
from collections.abc import AsyncGenerator

from whence_server.domain.entries import Entry, EntryKind
from whence_server.telemetry.journal import GenerationReader

STEPS_AT_ONCE = 32
"""Most steps that are worked on between two turns of the event loop: about a millisecond."""

_PAGE = 512
_STEPS = frozenset({EntryKind.STEP})


async def read_step_pieces(
    journal: GenerationReader, generation_id: str, *, after_offset: int = 0, limit: int = 2**62
) -> AsyncGenerator[list[Entry], None]:
    """Yield a generation's STEP entries by ascending offset, at most `STEPS_AT_ONCE` at a time.

    The event loop runs its other tasks before each piece.

    Args:
        journal: the journal to read.
        generation_id: the generation.
        after_offset: offset after which to begin.
        limit: most entries to read.

    Raises:
        GenerationNotFoundError: the generation was deleted.
    """
    while limit > 0:
        page = await journal.read(generation_id, after_offset, min(_PAGE, limit), _STEPS)
        if not page:
            return
        for begin in range(0, len(page), STEPS_AT_ONCE):
            await asyncio.sleep(0)
            yield page[begin : begin + STEPS_AT_ONCE]
        after_offset = page[-1].offset
        limit -= len(page)
