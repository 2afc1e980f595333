"""The journal as the event loop sees it: append, follow, read, delete, verify."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import ParamSpec, TypeVar

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    DeletionPendingError,
    GenerationNotFoundError,
    GenerationRunningError,
    JournalError,
    RecordDamagedError,
)
from whence_server.journal import listing
from whence_server.journal.chain import ChainReport, ChainWalk
from whence_server.journal.deletion import Deletion
from whence_server.journal.follow import follow
from whence_server.journal.lock import DirectoryLock
from whence_server.journal.log import Log
from whence_server.journal.privacy import make_directory, make_private
from whence_server.journal.readers import Readers
from whence_server.journal.rows import (
    Durability,
    FinishIndex,
    GenerationIndex,
    GenerationRow,
    ListFilter,
)
from whence_server.journal.signal import Signal
from whence_server.journal.sqlite_store import SqliteStore
from whence_server.journal.store import State, Store
from whence_server.journal.tail import LiveGeneration
from whence_server.journal.writer import DEFAULT_PATIENCE_S

__all__ = ["FinishIndex", "GenerationIndex", "Journal"]

P = ParamSpec("P")
T = TypeVar("T")

_NUM_READERS = 3
# Lists and walks have threads of their own: a look-up or a stream never waits behind them.
_NUM_HEAVY_READERS = 2
_CLEAR_AGAIN_S = 1.0
_PAGE_BYTES = 1 << 20
_BATCH_BYTES = 64 << 10
_BATCH_ENTRIES = 1_024
_CHAIN_CHUNK = 1_024
# Larger than any offset or size, and still one of SQLite's integers.
_MAX_OFFSET = _ALL_BYTES = 2**62
_TRUNCATE_ATTEMPTS = 5


class Journal:
    """One server's log and its readers: entries are appended, followed, read and deleted."""

    def __init__(
        self,
        store: Store,
        state: State,
        *,
        durability: Durability,
        commit_interval_s: float,
        max_pending_bytes: int,
        tail_entries: int,
        patience_s: float,
        release: Callable[[], None],
    ) -> None:
        """Join a store and its state; `release` is called once it is closed."""
        self._store = store
        self._log = Log(
            store,
            state,
            durability=durability,
            commit_interval_s=commit_interval_s,
            max_pending_bytes=max_pending_bytes,
            tail_entries=tail_entries,
            patience_s=patience_s,
        )
        self._writer_id = state.writer_id
        self._cursors = dict(state.cursors)
        self._readers = Readers()
        self._deletion = Deletion(self._log, store, self._readers)
        self._release = release

    @classmethod
    async def open(
        cls,
        data_dir: Path,
        *,
        durability: Durability = Durability.GROUP,
        commit_interval_s: float = 0.02,
        max_pending_bytes: int = 16 << 20,
        tail_entries: int = 64,
        patience_s: float = DEFAULT_PATIENCE_S,
    ) -> "Journal":
        """Open the log in a directory, or makes both.

        Args:
            data_dir: made with mode 0700 if it is not there.
            durability: when an entry becomes visible.
            commit_interval_s: how long GROUP gathers before it commits.
            max_pending_bytes: of entries not on disk yet, before `writable` waits.
            tail_entries: committed entries kept in memory of each running generation.
            patience_s: how long the journal may be unwritable before those who follow a
                generation are told.

        Raises:
            ConfigurationError: another server uses it, it is no journal or a newer version's,
                or SQLite is too old.
        """
        lock, store, state = await asyncio.to_thread(_open, data_dir, durability)
        return cls(
            store,
            state,
            durability=durability,
            commit_interval_s=commit_interval_s,
            max_pending_bytes=max_pending_bytes,
            tail_entries=tail_entries,
            patience_s=patience_s,
            release=lock.release,
        )

    @property
    def size_bytes(self) -> int:
        """What the journal takes on disk."""
        return self._store.size_bytes

    @property
    def trouble(self) -> JournalError | None:
        """Why nothing new can be put on record, at present or for good; None if it can."""
        return self._log.writer.error or self._log.writer.stall

    @property
    def lost(self) -> JournalError | None:
        """Why nothing can be written any more; None as long as that may change."""
        return self._log.writer.error

    @property
    def trouble_changed(self) -> Signal:
        """Notified when `trouble` changes."""
        return self._log.writer.standing

    def check_writable(self) -> None:
        """Return as long as new work can be put on record.

        Raises:
            JournalUnwritableError: not at present.
            JournalError: nothing more can be written.
        """
        self._log.writer.check_writable()

    def time_commits(self, on_time: Callable[[float], None]) -> None:
        """Let the given function know how long every transaction takes, in seconds."""
        self._log.writer.on_time = on_time

    # ---- appending ----

    @property
    def position(self) -> int:
        """Position of the newest entry, committed or not; 0 in an empty log."""
        return self._log.position

    @property
    def committed_position(self) -> int:
        """Position of the newest entry on disk; 0 in an empty log."""
        return self._log.committed_position

    def unfinished(self) -> list[str]:
        """Return the ids of generations that an earlier run left open, oldest first."""
        return self._log.unfinished()

    def uncalled(self) -> list[str]:
        """Return the ids of generations of an earlier run that have no call on record."""
        return self._log.uncalled()

    def create(self, index: GenerationIndex, payload: bytes) -> int:
        """Append STARTED; return its offset, 1. Errors: see `Log.create`."""
        return self._log.create(index, payload)

    def append(self, generation_id: str, kind: EntryKind, payload: bytes) -> int:
        """Append one of a running generation's entries; return its offset. See `Log.append`."""
        return self._log.append(generation_id, kind, payload)

    def finish(self, generation_id: str, payload: bytes, index: FinishIndex) -> int:
        """Append FINISHED; return its offset. Errors: see `Log.finish`."""
        return self._log.finish(generation_id, payload, index)

    def give_up(self, generation_id: str) -> None:
        """Drop a generation of an earlier run that cannot be finished. See `Log.give_up`."""
        self._log.give_up(generation_id)

    def record_call(self, generation_id: str, payload: bytes) -> None:
        """Append CALL, outside any generation's offsets. Errors: see `Log.record_call`."""
        self._log.record_call(generation_id, payload)

    async def writable(self) -> None:
        """Wait while too much is not on disk yet: back-pressure towards the engine."""
        await self._log.writable()

    async def flush(self) -> None:
        """Wait until all that was appended so far is committed. Errors: see `Log.flush`."""
        await self._log.flush()

    # ---- following ----

    def follow(
        self, generation_id: str, after_offset: int = 0, max_batch_bytes: int = _BATCH_BYTES
    ) -> AsyncGenerator[list[Entry], None]:
        """A generation's own entries beyond an offset, live, until FINISHED.

        One at a time while the reader keeps up, more when it lags. FINISHED comes in any case,
        also where `after_offset` lies beyond it.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its entries are not as they were written, or some are missing.
            JournalUnwritableError: the disk is full or out of order, for longer than the
                patience; what can be read has been yielded.
            JournalError: the writer has failed; what there was has been yielded.
        """
        live = self._log.live(generation_id)
        return follow(
            live,
            partial(self._next, generation_id, max_batch_bytes),
            partial(self._check_following, live),
            after_offset=min(after_offset, _MAX_OFFSET),
            max_batch_bytes=max_batch_bytes,
        )

    def _check_following(self, live: LiveGeneration | None) -> None:
        """Return as long as something new may come soon."""
        self._log.writer.check()
        stall = self._log.writer.stall
        if stall is not None and self._log.writer.told:
            recorded = live.offset_up_to(self.committed_position) if live else 0
            raise type(stall)(
                stall.detail, stall.retry_after_s, recorded_offset=str(recorded)
            ) from stall

    def follow_all(
        self, after_position: int | None = None, max_batch_bytes: int = _BATCH_BYTES
    ) -> AsyncGenerator[list[Entry], None]:
        """All entries of all kinds, as they are committed; never ends.

        Only what is on disk is shown, so that a position never stands for two entries, even
        over a crash.

        Args:
            after_position: go on beyond this one; None begins with what is appended from now on.
            max_batch_bytes: of payloads in a batch.

        Raises:
            JournalError: the writer has failed; what was committed has been yielded.
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
        self, after_position: int, limit: int = _BATCH_ENTRIES, max_bytes: int = 4 << 20
    ) -> list[Entry]:
        """Entries of all kinds beyond a position, in order; at least one if there is one.

        None lies beyond `committed_position`, so that a cursor can `advance` to each of them:
        the writer's thread may have committed more than the event loop has heard of.
        """
        after = min(after_position, _MAX_OFFSET)
        entries = await self._readers.run(
            self._store.read_all, after, limit=limit, max_bytes=max_bytes
        )
        last = self._log.writer.committed_position
        while entries and entries[-1].position > last:
            entries.pop()
        return entries

    async def wait_committed(self, after_position: int) -> None:
        """Return once something is committed beyond a position.

        Raises:
            JournalError: the writer has failed before that.
        """
        while self._log.writer.committed_position <= after_position:
            self._log.writer.check()
            await self._log.writer.committed.wait()

    async def _next(self, generation_id: str, max_bytes: int, after_offset: int) -> list[Entry]:
        """What is on disk beyond an offset; the last entry where there is nothing."""
        batch = await self._readers.run(
            self._store.read,
            generation_id,
            after_offset,
            limit=_BATCH_ENTRIES,
            max_bytes=max_bytes,
        )
        return batch or [await self._readers.run(self._store.last, generation_id)]

    # ---- looking up ----

    async def read(
        self,
        generation_id: str,
        after_offset: int = 0,
        limit: int = _BATCH_ENTRIES,
        kinds: Collection[EntryKind] | None = None,
    ) -> list[Entry]:
        """Up to `limit` of a generation's own entries beyond an offset, of some kinds or all.

        Kinds outside a generation's offsets are given only where `kinds` names them: at offset
        0, before all others, whatever `after_offset` says.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are not as they were written.
        """
        await self._settle()
        after = min(after_offset, _MAX_OFFSET)
        entries = await self._readers.run(
            self._store.read, generation_id, after, limit=limit, max_bytes=_ALL_BYTES, kinds=kinds
        )
        _check_offsets(entries)
        return entries

    async def get(self, generation_id: str) -> GenerationRow:
        """A generation at a glance.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its row leads to another generation's entries.
        """
        row = await self.lookup(generation_id)
        if row is None or row.deleted:
            raise GenerationNotFoundError(generation_id, deleted=row is not None)
        if row.foreign:
            raise RecordDamagedError(generation_id, row.damage)
        return row

    async def lookup(self, generation_id: str) -> GenerationRow | None:
        """What is known of an id: a generation, a tombstone, or nothing."""
        live = self._log.live(generation_id)
        if live is not None:
            return live.row
        return await self._readers.run(self._store.generation, generation_id)

    async def _settle(self) -> None:
        """Let a read see all that was appended before it, as long as anything can be written."""
        if self.trouble is None:
            with suppress(JournalError):
                await self._log.writer.flush()

    # ---- the rest ----

    async def delete(self, generation_id: str) -> None:
        """Destroy a generation's content on disk; a tombstone keeps its id from being reused.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted before.
            GenerationRunningError: it has not finished.
            RecordDamagedError: its row leads to another generation's entries.
            DeletionPendingError: it is deleted, and a foreign reader of the database keeps the
                content in the write-ahead log: it is cleared as soon as that can be done.
            JournalUnwritableError: the disk is full or out of order at present.
            JournalError: nothing more can be written.
        """
        self.check_writable()
        row = await self.get(generation_id)
        # One that does not run has no finish where its record is damaged: it can be deleted.
        if row.finish is None and self._log.live(generation_id) is not None:
            raise GenerationRunningError(generation_id)
        if not await self._deletion.delete(generation_id):
            raise DeletionPendingError(generation_id)

    async def wait_cleared(self) -> None:
        """Wait until deleted content has left the write-ahead log."""
        await self._deletion.wait_cleared()

    async def cursor(self, name: str) -> int:
        """Where a reader of all entries has come to; 0 for a new one."""
        return self._cursors.get(name, 0)

    def advance(self, name: str, position: int) -> None:
        """Move a cursor; durable with the next commit.

        Raises:
            JournalError: nothing more can be written.
            ValueError: the position lies before the cursor, or beyond what is committed.
        """
        self._log.writer.check()
        here, last = self._cursors.get(name, 0), self._log.writer.committed_position
        if not here <= position <= last:
            raise ValueError(f"cursor {name!r} can move from {here} to {last}, not {position}")
        self._cursors[name] = self._log.writer.pending.cursors[name] = position
        self._log.writer.submit()

    async def verify(self) -> ChainReport:
        """Walk the whole chain; see `chain` for what it can find and what it cannot."""
        await self._settle()
        walk, committed = ChainWalk(self._writer_id), self._log.writer.committed_position
        while not walk.broken:
            rows = await self._readers.run_heavy(self._store.chain, walk.position, _CHAIN_CHUNK)
            if not rows:
                break
            await self._readers.run_heavy(walk.take, rows)
        return walk.report(committed)

    async def close(self) -> None:
        """Commit what is pending, if that is possible, and lets go of everything.

        Raises:
            JournalError: the last of it could not be written.
        """
        await self._deletion.close()
        try:
            await self._log.writer.close()
        finally:
            await self._readers.close()
            await asyncio.to_thread(self._store.close)
            self._release()

    # The last of the class: its name, the contract's word, hides the built-in from what follows.
    async def list(
        self, list_filter: ListFilter, page_size: int, page_token: str = ""
    ) -> tuple[list[GenerationRow], str]:
        """A page of generations, newest first, and the next page's token, "" at the end.

        A page is bounded in bytes and in what is looked through for it: it may hold fewer than
        `page_size`, or none, and not be the last.

        Raises:
            InvalidRequestError: `page_token` is not one, or belongs to another filter.
        """
        beyond = listing.decode_page_token(page_token, list_filter) if page_token else None
        await self._settle()
        page = await self._readers.run_heavy(
            self._store.page, list_filter, beyond, page_size, _PAGE_BYTES
        )
        if page.end is None:
            return page.rows, ""
        return page.rows, listing.encode_page_token(page.end, list_filter)


def _make_private(data_dir: Path) -> None:
    try:
        make_private(data_dir)
    except OSError as error:
        raise ConfigurationError(f"the data directory cannot be used: {error}") from error


def _check_offsets(entries: list[Entry]) -> None:
    """Check that no other generation's entry was put among these.

    Raises:
        RecordDamagedError: two of them have one offset.
    """
    for before, entry in pairwise(entries):
        if entry.offset and entry.offset == before.offset:
            raise RecordDamagedError(entry.generation_id, f"it has two entries {entry.offset}")


def _open(data_dir: Path, durability: Durability) -> tuple[DirectoryLock, SqliteStore, State]:
    try:
        make_directory(data_dir)
        lock = DirectoryLock(data_dir)
    except OSError as error:
        raise ConfigurationError(f"the data directory cannot be used: {error}") from error
    try:
        _make_private(data_dir)
        store = SqliteStore(data_dir / "journal.db", durability)
        return lock, store, store.state()
    except BaseException:
        lock.release()
        raise
