"""Following the whole stream of a generation whose record holds less."""

from collections.abc import AsyncGenerator

from whence_server.domain.entries import Entry, EntryKind
from whence_server.generation.content.held import HeldContent
from whence_server.journal.journal import Journal

_BATCH_BYTES = 64 << 10


class WholeEntries(list[Entry]):
    """Entries as the caller's own stream has them, of a generation whose record holds less."""


async def follow_whole(
    journal: Journal, held: HeldContent, after_offset: int
) -> AsyncGenerator[list[Entry], None]:
    """Yield a generation's entries after an offset, live, until FINISHED.

    Entries that are held no longer come from the record; all others are `WholeEntries`. The caller
    asks for the next entries only after it has written the last ones to its connection.

    Raises:
        JournalUnwritableError: the disk has been full or failing for too long.
        JournalError: the writer has failed.
    """
    cursor, reader = after_offset, object()
    held.move(reader, cursor)
    try:
        while not held.is_forgotten:
            batch = await _read_next(journal, held, cursor)
            if not batch:
                journal.check_following(held.live)
                await held.changed.wait()
                continue
            yield batch
            if batch[-1].kind is EntryKind.FINISHED:
                held.move(reader, max(cursor, batch[-1].offset))
                return
            cursor = batch[-1].offset
            held.move(reader, cursor)
    finally:
        held.leave(reader)
    async for recorded in journal.follow(held.generation_id, cursor):
        yield recorded


async def _read_next(journal: Journal, held: HeldContent, cursor: int) -> list[Entry]:
    """Return the next entries after a cursor: held ones or, before these, recorded ones."""
    batch = held.read_after(cursor, _BATCH_BYTES)
    if batch is not None:
        return WholeEntries(batch)
    recorded = await journal.read(held.generation_id, cursor)
    # Held entries are whole, and come from memory.
    return [entry for entry in recorded if held.is_forgotten or entry.offset < held.first_offset]
