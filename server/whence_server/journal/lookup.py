"""Reading what the journal has: a generation's row and entries, and pages of rows."""

from collections.abc import Collection
from contextlib import suppress
from itertools import pairwise

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationNotFoundError,
    JournalError,
    RecordDamagedError,
)
from whence_server.journal import listing
from whence_server.journal.following import BATCH_ENTRIES, MAX_OFFSET
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.rows import GenerationRow, ListFilter
from whence_server.journal.store import Store

_PAGE_BYTES = 1 << 20
ALL_BYTES = MAX_OFFSET
"""Bound in bytes of a read without one."""


class Lookup:
    """Look-ups in one log; its methods are those of `Journal`."""

    def __init__(self, log: Log, store: Store, readers: Readers) -> None:
        self._log = log
        self._store = store
        self._readers = readers

    async def read(
        self,
        generation_id: str,
        after_offset: int = 0,
        limit: int = BATCH_ENTRIES,
        kinds: Collection[EntryKind] | None = None,
        max_bytes: int = ALL_BYTES,
    ) -> list[Entry]:
        """Return entries of a generation after an offset up to either bound, of some kinds or all.

        One entry may exceed `max_bytes`. Kinds outside a generation's offsets are returned only if
        `kinds` names them: at offset 0, before all others, for every `after_offset`.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are not as they were written.
        """
        await self.flush_pending()
        after = min(after_offset, MAX_OFFSET)
        entries = await self._readers.run(
            self._store.read, generation_id, after, limit=limit, max_bytes=max_bytes, kinds=kinds
        )
        _check_offsets(entries)
        return entries

    async def get(self, generation_id: str) -> GenerationRow:
        """Return a generation's row.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its row points to another generation's entries.
        """
        row = await self.look_up(generation_id)
        if row is None or row.deleted:
            raise GenerationNotFoundError(generation_id, deleted=row is not None)
        if row.foreign:
            raise RecordDamagedError(generation_id, row.damage)
        return row

    async def look_up(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""
        live = self._log.get_live(generation_id)
        if live is not None:
            return live.row
        return await self._readers.run(self._store.find_generation, generation_id)

    async def flush_pending(self) -> None:
        """Commit everything appended so far, so that a read sees it, if the journal is writable."""
        if self._log.trouble is None:
            with suppress(JournalError):
                await self._log.flush()

    async def list_page(
        self, list_filter: ListFilter, page_size: int, page_token: str = ""
    ) -> tuple[list[GenerationRow], str]:
        """Return a page of generations, newest first, and the next page's token, "" at the end.

        A page is bounded in bytes and in the number of examined generations: a page before the
        last may hold fewer than `page_size`, or none.

        Raises:
            InvalidRequestError: `page_token` is malformed or belongs to another filter.
        """
        beyond = listing.decode_page_token(page_token, list_filter) if page_token else None
        await self.flush_pending()
        page = await self._readers.run_heavy(
            self._store.read_page, list_filter, beyond, page_size, _PAGE_BYTES
        )
        if page.end is None:
            return page.rows, ""
        return page.rows, listing.encode_page_token(page.end, list_filter)


def _check_offsets(entries: list[Entry]) -> None:
    """Check that no other generation's entry was put among these.

    Raises:
        RecordDamagedError: two of them have one offset.
    """
    for before, entry in pairwise(entries):
        if entry.offset and entry.offset == before.offset:
            raise RecordDamagedError(entry.generation_id, f"it has two entries {entry.offset}")
