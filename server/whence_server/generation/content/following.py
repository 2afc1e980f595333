"""Following the whole stream of a generation whose record holds less."""

from collections.abc import AsyncGenerator

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ContentNotReadError
from whence_server.generation.content.held import HeldContent
from whence_server.journal.journal import Journal

_BATCH_BYTES = 64 << 10
_LACKING = {policy.value for policy in ContentPolicy if not policy.is_whole}
"""Numbers of the policies that keep content out of the record."""


class WholeEntries(list[Entry]):
    """Entries as the caller's own stream has them, of a generation whose record holds less."""


async def follow_whole(
    journal: Journal, held: HeldContent, after_offset: int, *, takes_record: bool = True
) -> AsyncGenerator[list[Entry], None]:
    """Yield a generation's entries after an offset, live, until FINISHED.

    Entries that are held no longer come from the record; all others are `WholeEntries`. The caller
    asks for the next entries only after it has written the last ones to its connection.

    Args:
        journal: the journal.
        held: entries in memory.
        after_offset: offset up to which entries are skipped.
        takes_record: True for a caller that is told which entries are from the record; for another
            one, they would pass for whole ones.

    Raises:
        ContentNotReadError: entries are held no longer, and the caller does not take the record's.
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
            if not takes_record and not isinstance(batch, WholeEntries):
                break
            yield batch
            if batch[-1].kind is EntryKind.FINISHED:
                held.move(reader, max(cursor, batch[-1].offset))
                return
            cursor = batch[-1].offset
            held.move(reader, cursor)
    finally:
        held.leave(reader)
    if not takes_record:
        raise ContentNotReadError(held.generation_id)
    async for recorded in journal.follow(held.generation_id, cursor):
        yield recorded


async def follow_recorded(
    journal: Journal, generation_id: str, after_offset: int
) -> AsyncGenerator[list[Entry], None]:
    """Yield a generation's entries from its record, for a caller that takes only whole ones.

    Raises:
        ContentNotReadError: the generation's policy keeps content out of the record.
        GenerationNotFoundError: it is not known, or was deleted.
    """
    async for entries in journal.follow(generation_id, after_offset):
        if entries[0].kind is EntryKind.STARTED:
            started = GenerationStarted.FromString(entries[0].payload)
            if started.content in _LACKING:
                raise ContentNotReadError(generation_id)
        yield entries


async def _read_next(journal: Journal, held: HeldContent, cursor: int) -> list[Entry]:
    """Return the next entries after a cursor: held ones or, before these, recorded ones."""
    batch = held.read_after(cursor, _BATCH_BYTES)
    if batch is not None:
        return WholeEntries(batch)
    recorded = await journal.read(held.generation_id, cursor)
    # Held entries are whole, and come from memory.
    return [entry for entry in recorded if held.is_forgotten or entry.offset < held.first_offset]
