"""The journal's interface for the event loop: append, follow, read, delete, verify."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    DeletionPendingError,
    GenerationRunningError,
    JournalError,
)
from whence_server.domain.retention import LabelPattern, RetentionPolicy
from whence_server.journal.attesting import Signing
from whence_server.journal.audit_log import AuditLog
from whence_server.journal.chain import ChainReport, ChainWalk, Origin
from whence_server.journal.deletion import Deletion
from whence_server.journal.following import BATCH_BYTES, BATCH_ENTRIES, Following
from whence_server.journal.later_occurrences import LaterOccurrences
from whence_server.journal.log import Log
from whence_server.journal.lookup import ALL_BYTES, Lookup
from whence_server.journal.opening import open_directory
from whence_server.journal.patience import Patience
from whence_server.journal.readers import Readers
from whence_server.journal.retention.clock import RetentionClock
from whence_server.journal.retention.spelling import spell_holds, spell_policy
from whence_server.journal.retention.store import RetentionStore
from whence_server.journal.retention.sweeper import Sweeper, SweptJournal
from whence_server.journal.rows import (
    Durability,
    FinishIndex,
    GenerationIndex,
    GenerationRow,
    ListFilter,
)
from whence_server.journal.sealing.forms import CLEAR_FORMS, Forms
from whence_server.journal.sealing.opening import SealingOptions
from whence_server.journal.sealing.sealed_store import SealedStore
from whence_server.journal.sharing.sharing import Sharing
from whence_server.journal.sharing.store import SharedStore
from whence_server.journal.signal import Signal
from whence_server.journal.sqlite_store import SqliteStore
from whence_server.journal.store import State, Store
from whence_server.journal.stored_bytes import StoredBytes
from whence_server.journal.tail import LiveGeneration
from whence_server.journal.tree import Tree
from whence_server.journal.writer import DEFAULT_PATIENCE_S

__all__ = ["FinishIndex", "GenerationIndex", "Journal"]


_CHAIN_CHUNK = 1_024


class Journal:
    """One server's log of generations, with its readers.

    Attributes:
        id: random identity of the log.
        forms: forms in which entries and labels are stored.
        audit: its audit records.
        tree: tables of the transparency log.
        later: records occurrences of generations that may have ended.
        stored: bytes that each caller has in it.
        signing: signs the ends of generations.
        sharing: the parts for a database of several servers.
    """

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
        forms: Forms = CLEAR_FORMS,
        holds: Sequence[LabelPattern] = (),
        read_patience_s: float | None = None,
    ) -> None:
        """Join a store and its state; call `release` after the journal is closed."""
        self._store = store
        self._log = Log(
            store,
            state,
            durability=durability,
            commit_interval_s=commit_interval_s,
            max_pending_bytes=max_pending_bytes,
            tail_entries=tail_entries,
            patience_s=patience_s,
            forms=forms,
        )
        self.id = state.writer_id
        self.forms = forms
        self._cursors = dict(state.cursors)
        self._readers = Readers()
        self._lookup = Lookup(self._log, store, self._readers)
        self.signing = Signing(self._log, self._lookup)
        stored_holds = spell_holds(holds, forms.spell_label)
        self._deletion = Deletion(self._log, store, self._readers, forms.find_key_id, stored_holds)
        # It does errands, which are deletions, from now on.
        patience = Patience(
            self._log.writer, patience_s if read_patience_s is None else read_patience_s
        )
        self.sharing = Sharing(store, self._log, self._readers, self.delete, patience)
        self._following = Following(self._log, store, self._readers, self.sharing, patience)
        self.audit = AuditLog(self._log, store, self._readers)
        self.later = LaterOccurrences(self._log, store, self._readers, forms)
        self.tree = Tree(self._log, store, self._readers)
        self.stored = StoredBytes(store, self._readers, self._lookup.flush_pending)
        self._log.on_append = self.stored.add
        self._release = release
        self._join = partial(
            Journal,
            durability=durability,
            commit_interval_s=commit_interval_s,
            max_pending_bytes=max_pending_bytes,
            tail_entries=tail_entries,
            patience_s=patience_s,
            forms=forms,
            holds=holds,
            read_patience_s=read_patience_s,
        )

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
        open_store: Callable[[Path, Durability], Store] | None = None,
        sealing: SealingOptions | None = None,
        holds: Sequence[LabelPattern] = (),
        read_patience_s: float | None = None,
    ) -> "Journal":
        """Open the log in a directory; create both if they do not exist.

        Args:
            data_dir: the directory; created with mode 0700 if it does not exist.
            durability: the time at which an entry becomes visible.
            commit_interval_s: seconds between the commits of GROUP.
            max_pending_bytes: bytes of uncommitted entries above which `wait_writable` waits.
            tail_entries: number of committed entries of each running generation to keep in memory.
            patience_s: seconds that the journal may be unwritable before readers that follow a
                generation get an error.
            open_store: opens the database at a path; called in a thread. None: SQLite.
            sealing: keys by which content is encrypted; None to store it in clear.
            holds: labels of generations that nothing deletes, in this log or one that is taken.
            read_patience_s: seconds for which streams wait for the database if it cannot be read;
                None for `patience_s`.

        Raises:
            ConfigurationError: another server uses the directory, its database is not a journal or
                of a newer version, SQLite is too old, or the keys are missing or wrong.
        """
        lock, store, state, forms = await asyncio.to_thread(
            open_directory, data_dir, durability, open_store or SqliteStore, sealing
        )
        return cls(
            store,
            state,
            durability=durability,
            commit_interval_s=commit_interval_s,
            max_pending_bytes=max_pending_bytes,
            tail_entries=tail_entries,
            patience_s=patience_s,
            release=lock.release,
            forms=forms,
            holds=holds,
            read_patience_s=read_patience_s,
        )

    async def take_over(self) -> "Journal | None":
        """Open the log of a server that died or left something to do; None if there is none.

        Raises:
            JournalError: the database is away, or the log is damaged.
        """
        found = await self.sharing.take_over()
        if found is None:
            return None
        taken = self._join(*found, release=lambda: None)
        self.signing.sign_for(taken.signing)
        return taken

    async def take_idle(self, writer: int) -> "Journal | None":
        """Open a log that no server holds; None if a server has it by now; as `take_over`."""
        found = await self.sharing.take_idle(writer)
        return None if found is None else self._join(*found, release=lambda: None)

    @property
    def size_bytes(self) -> int:
        """Size of the journal on disk."""
        return self._store.size_bytes

    @property
    def trouble(self) -> JournalError | None:
        """Error that prevents new generations, temporary or final; None if there is none."""
        return self._log.trouble

    @property
    def lost(self) -> JournalError | None:
        """Final error after which nothing can be written; None if there is none."""
        return self._log.writer.error

    @property
    def trouble_changed(self) -> Signal:
        """Signal that is notified when `trouble` changes."""
        return self._log.writer.status_changed

    def check_writable(self) -> None:
        """Raise if no new generation can be recorded.

        Raises:
            JournalUnwritableError: the disk is full or failing at present.
            JournalError: nothing more can be written.
        """
        self._log.writer.check_writable()

    def time_commits(self, on_duration: Callable[[float], None]) -> None:
        """Call the given function with the duration of every transaction, in seconds."""
        self._log.writer.on_duration = on_duration

    # ---- appending ----

    @property
    def position(self) -> int:
        """Position of the newest entry, committed or not; 0 in an empty log."""
        return self._log.position

    @property
    def committed_position(self) -> int:
        """Position of the newest entry on disk; 0 in an empty log."""
        return self._log.committed_position

    def list_unfinished(self) -> list[str]:
        """Return the ids of generations that an earlier run left unfinished, oldest first."""
        return self._log.list_unfinished()

    def list_uncalled(self) -> list[str]:
        """Return the ids of generations of an earlier run that have no CALL entry."""
        return self._log.list_uncalled()

    def create(self, index: GenerationIndex, payload: bytes) -> int:
        """Append STARTED; return its offset, 1. Raises the errors of `Log.create`."""
        return self._log.create(index, payload)

    def append(self, generation_id: str, kind: EntryKind, payload: bytes) -> int:
        """Append an entry of a running generation; return its offset. Raises as `Log.append`."""
        return self._log.append(generation_id, kind, payload)

    def finish(self, generation_id: str, payload: bytes, index: FinishIndex) -> int:
        """Append FINISHED; return its offset. Raises the errors of `Log.finish`."""
        return self._log.finish(generation_id, payload, index)

    def give_up(self, generation_id: str) -> None:
        """Drop an unfinished generation of an earlier run, as `Log.give_up` does."""
        self._log.give_up(generation_id)

    def record_call(self, generation_id: str, payload: bytes) -> None:
        """Append CALL, outside any generation's offsets. Raises the errors of `Log.record_call`."""
        self._log.record_call(generation_id, payload)

    def record_occurrence(self, generation_id: str, payload: bytes) -> None:
        """Append OCCURRENCE, outside the offsets. Raises the errors of `Log.record_occurrence`."""
        self._log.record_occurrence(generation_id, payload)

    async def wait_writable(self, *, in_stall: bool = True) -> bool:
        """Hold the engine back while too many bytes are uncommitted, as `Writer.wait_writable`."""
        return await self._log.writer.wait_writable(in_stall=in_stall)

    async def flush(self) -> None:
        """Wait until everything appended so far is committed. Raises the errors of `Log.flush`."""
        await self._log.flush()

    # ---- following ----

    def follow(
        self, generation_id: str, after_offset: int = 0, max_batch_bytes: int = BATCH_BYTES
    ) -> AsyncGenerator[list[Entry], None]:
        """Return a generator of a generation's entries after an offset, as `Following.follow`."""
        return self._following.follow(generation_id, after_offset, max_batch_bytes)

    def get_live(self, generation_id: str) -> LiveGeneration | None:
        """Return a generation whose FINISHED entry is not on disk yet; None for any other."""
        return self._log.get_live(generation_id)

    def check_following(self, live: LiveGeneration | None) -> None:
        """Raise if a follower waits in vain, as `Following.check` does."""
        self._following.check(live)

    def follow_all(
        self, after_position: int | None = None, max_batch_bytes: int = BATCH_BYTES
    ) -> AsyncGenerator[list[Entry], None]:
        """Return an endless generator of all committed entries, as `Following.follow_all`."""
        return self._following.follow_all(after_position, max_batch_bytes)

    async def follow_logs(
        self, reached: Mapping[bytes, int], max_batch_bytes: int = BATCH_BYTES
    ) -> AsyncGenerator[tuple[bytes, list[Entry]], None]:
        """Yield the ids of logs with their committed entries, without an end, as `follow_all`.

        Args:
            reached: position up to which entries are skipped, by the id of the log; 0 for others.
            max_batch_bytes: limit of the payloads in a batch.
        """
        batches = self.sharing.follow_logs(reached, max_batch_bytes)
        if batches is None:
            async for entries in self.follow_all(reached.get(self.id, 0), max_batch_bytes):
                yield self.id, entries
            return
        async with aclosing(batches):
            async for log_id, entries in batches:
                yield log_id, entries

    async def read_committed(
        self, after_position: int, limit: int = BATCH_ENTRIES, max_bytes: int = 4 << 20
    ) -> list[Entry]:
        """Return committed entries after a position, as `Following.read_committed`."""
        return await self._following.read_committed(after_position, limit, max_bytes)

    async def wait_committed(self, after_position: int) -> None:
        """Wait until an entry after a position is committed.

        Raises:
            JournalError: the writer has failed first.
        """
        await self._following.wait_committed(after_position)

    # ---- looking up ----

    async def read(
        self,
        generation_id: str,
        after_offset: int = 0,
        limit: int = BATCH_ENTRIES,
        kinds: Collection[EntryKind] | None = None,
        max_bytes: int = ALL_BYTES,
    ) -> list[Entry]:
        """Return entries of a generation after an offset. Raises the errors of `Lookup.read`."""
        return await self._lookup.read(generation_id, after_offset, limit, kinds, max_bytes)

    async def get(self, generation_id: str) -> GenerationRow:
        """Return a generation's row. Raises the errors of `Lookup.get`."""
        return await self._lookup.get(generation_id)

    async def look_up(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""
        return await self._lookup.look_up(generation_id)

    # ---- the rest ----

    async def delete(self, generation_id: str, caller_id: str = "") -> None:
        """Destroy a generation's content on disk for a caller; its id stays taken.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted before.
            GenerationRunningError: it has not finished.
            GenerationHeldError: a label of it is under a hold.
            RecordDamagedError: its row points to another generation's entries.
            DeletionPendingError: it is deleted, but a reader outside this server keeps the content
                in the write-ahead log; clearing the log is repeated until it succeeds.
            JournalUnwritableError: the disk is full or failing at present.
            JournalError: nothing more can be written.
        """
        self.check_writable()
        row = await self.get(generation_id)
        if (writer := await self.sharing.find_other_writer(generation_id)) is not None:
            await self.sharing.delete_elsewhere(writer, generation_id, caller_id)
            return
        # A generation that is not running and has no finish is damaged: it can be deleted.
        if row.finish is None and self._log.get_live(generation_id) is not None:
            raise GenerationRunningError(generation_id)
        try:
            is_cleared = await self._deletion.delete(row, caller_id)
        finally:
            # Also if the caller hangs up: the deletion may be on its way to the disk.
            self.stored.note_deletion(row.index.owner)
        if not is_cleared:
            raise DeletionPendingError(generation_id)

    def make_sweeper(
        self,
        policy: RetentionPolicy,
        exports: Collection[str] = (),
        clock: RetentionClock | None = None,
    ) -> Sweeper | None:
        """Return the task that applies a policy of retention, and hold what the policy holds.

        Args:
            policy: rules of deletion, and holds.
            exports: names of the cursors that must have read a generation before it is deleted.
            clock: clock of this process's other sweeper; None for one of its own.

        Returns:
            None if the database has no retention, or if it is shared and the policy asks for
            nothing: the size of one log is not known without counting.
        """
        # Retention judges by what is stored: it needs no key.
        store = self._store.stored if isinstance(self._store, SealedStore) else self._store
        is_idle = isinstance(store, SharedStore) and not policy.deletes and not policy.holds
        if is_idle or not isinstance(store, RetentionStore):
            return None
        stored_policy = spell_policy(policy, self.forms.spell_label)
        self._deletion.holds = spell_holds(policy.holds, self.forms.spell_label)
        swept = SweptJournal(
            self._log,
            store,
            self._readers,
            self._deletion,
            lambda: min(
                (self._cursors.get(name, 0) for name in exports),
                default=self._log.committed_position,
            ),
            self.stored.note_sweep,
        )
        return Sweeper(swept, stored_policy, clock=clock)

    async def wait_cleared(self) -> None:
        """Wait until the write-ahead log holds no deleted content."""
        await self._deletion.wait_cleared()

    async def read_cursor(self, name: str) -> int:
        """Return the position of a reader of all entries; 0 for a new reader."""
        return self._cursors.get(name, 0)

    def advance(self, name: str, position: int) -> None:
        """Move a cursor; its position is durable with the next commit.

        Raises:
            JournalError: nothing more can be written.
            ValueError: the position is before the cursor or after the last committed entry.
        """
        self._log.writer.check()
        here, last = self._cursors.get(name, 0), self._log.writer.committed_position
        if not here <= position <= last:
            raise ValueError(f"cursor {name!r} can move from {here} to {last}, not {position}")
        self._cursors[name] = self._log.writer.pending.cursors[name] = position
        self._log.writer.submit()

    async def verify(self) -> ChainReport:
        """Verify the whole chain; the module `chain` describes the faults that it detects."""
        await self._lookup.flush_pending()
        while True:
            origin = await self._readers.run(self._store.read_origin)
            report = await self._walk_chain(origin)
            # Retention may have removed entries before the walk that it would have read.
            if await self._readers.run(self._store.read_origin) == origin:
                return report

    async def _walk_chain(self, origin: Origin | None) -> ChainReport:
        walk, committed = ChainWalk(self.id, origin), self._log.writer.committed_position
        while not walk.broken:
            rows = await self._readers.run_heavy(
                self._store.read_chain, walk.position, _CHAIN_CHUNK
            )
            if not rows:
                break
            await self._readers.run_heavy(walk.take, rows)
        return walk.report(committed)

    async def close(self) -> None:
        """Commit pending entries, if possible, and close everything.

        Raises:
            JournalError: pending entries could not be written.
        """
        await self._deletion.close()
        await self.sharing.close()
        try:
            await self._log.writer.close()
        finally:
            await self._readers.close()
            await asyncio.to_thread(self._store.close)
            self._release()

    # The last method of the class, because its name hides the built-in in the methods after it.
    async def list(
        self, list_filter: ListFilter, page_size: int, page_token: str = ""
    ) -> tuple[list[GenerationRow], str]:
        """Return a page of generations and the next page's token, as `Lookup.list_page`."""
        return await self._lookup.list_page(list_filter, page_size, page_token)
