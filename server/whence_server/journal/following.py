"""Reading the journal as it grows: one generation live, or the whole log behind its commits."""

from collections.abc import AsyncGenerator
from functools import partial

from whence_server.domain.entries import Entry
from whence_server.journal.follow import follow
from whence_server.journal.log import Log
from whence_server.journal.patience import Patience
from whence_server.journal.readers import Readers
from whence_server.journal.sharing.sharing import Sharing
from whence_server.journal.store import Store
from whence_server.journal.tail import LiveGeneration

MAX_OFFSET = 2**62
"""Number larger than any offset or size, and still one of a database's integers."""
BATCH_BYTES = 64 << 10
BATCH_ENTRIES = 1_024


class Following:
    """Readers that follow one log; its methods are those of `Journal`."""

    def __init__(
        self, log: Log, store: Store, readers: Readers, sharing: Sharing, patience: Patience
    ) -> None:
        self._log = log
        self._store = store
        self._readers = readers
        self._sharing = sharing
        self._patience = patience

    def follow(
        self, generation_id: str, after_offset: int = 0, max_batch_bytes: int = BATCH_BYTES
    ) -> AsyncGenerator[list[Entry], None]:
        """Return a generator of a generation's entries after an offset, live, until FINISHED.

        Batches hold one entry while the reader keeps up, more when it lags. FINISHED is always
        yielded, even if `after_offset` is after it.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its entries are damaged or missing.
            JournalUnwritableError: the disk has been full or failing, or the database away, for
                longer than `patience_s`; all readable entries have been yielded.
            JournalError: the writer has failed; all readable entries have been yielded.
        """
        live = self._log.get_live(generation_id)
        return follow(
            live,
            partial(self._read_patiently, generation_id, max_batch_bytes),
            partial(self.check, live),
            partial(self._wait_elsewhere, generation_id),
            after_offset=min(after_offset, MAX_OFFSET),
            max_batch_bytes=max_batch_bytes,
        )

    def check(self, live: LiveGeneration | None) -> None:
        """Raise if no new entry can be committed, or not within the patience."""
        self._log.writer.check()
        stall = self._log.writer.stall
        if stall is not None and self._log.writer.stall_reported:
            recorded = live.find_offset(self._log.committed_position) if live else 0
            raise type(stall)(
                stall.detail, stall.retry_after_s, recorded_offset=str(recorded)
            ) from stall

    def follow_all(
        self, after_position: int | None = None, max_batch_bytes: int = BATCH_BYTES
    ) -> AsyncGenerator[list[Entry], None]:
        """Return an endless generator of all entries of all kinds, as they are committed.

        It yields only entries that are on disk, so that a position never names two entries, even
        after a crash.

        Args:
            after_position: position up to which entries are skipped; None skips all present ones.
            max_batch_bytes: limit of the payloads in a batch.

        Raises:
            JournalError: the writer has failed; all committed entries have been yielded.
        """
        cursor = self._log.position if after_position is None else after_position
        return self._follow_all(cursor, max_batch_bytes)

    async def _follow_all(
        self, cursor: int, max_batch_bytes: int
    ) -> AsyncGenerator[list[Entry], None]:
        while True:
            await self.wait_committed(cursor)
            batch = await self.read_committed(cursor, max_bytes=max_batch_bytes)
            yield batch
            cursor = batch[-1].position

    async def read_committed(
        self, after_position: int, limit: int = BATCH_ENTRIES, max_bytes: int = 4 << 20
    ) -> list[Entry]:
        """Return entries of all kinds after a position, in order; at least one if there is one.

        Entries after `committed_position` are left out, so that a cursor can `advance` to each
        returned one: the writer's thread may be ahead of the event loop.
        """
        after = min(after_position, MAX_OFFSET)
        entries = await self._readers.run(
            self._store.read_all, after, limit=limit, max_bytes=max_bytes
        )
        last = self._log.writer.committed_position
        while entries and entries[-1].position > last:
            entries.pop()
        return entries

    async def wait_committed(self, after_position: int) -> None:
        """Wait until an entry after a position is committed.

        Raises:
            JournalError: the writer has failed first.
        """
        while self._log.writer.committed_position <= after_position:
            self._log.writer.check()
            await self._log.writer.committed.wait()

    async def _read_patiently(
        self, generation_id: str, max_bytes: int, after_offset: int
    ) -> list[Entry]:
        read = partial(self._read_next, generation_id, max_bytes, after_offset)
        return await self._patience.read(read)

    async def _wait_elsewhere(self, generation_id: str) -> bool:
        return await self._patience.read(partial(self._sharing.wait_elsewhere, generation_id))

    async def _read_next(
        self, generation_id: str, max_bytes: int, after_offset: int
    ) -> list[Entry]:
        """Return the entries on disk after an offset; the last entry if there are none."""
        while True:
            batch = await self._readers.run(
                self._store.read,
                generation_id,
                after_offset,
                limit=BATCH_ENTRIES,
                max_bytes=max_bytes,
            )
            if batch:
                return batch
            last = await self._readers.run(self._store.read_last, generation_id)
            if last.offset <= after_offset:
                return [last]
            # Another server has committed it since the first look: the entries before it too.
