"""The appending half of the journal: positions, offsets and hashes are given out here."""

import asyncio
import logging
import secrets

from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.domain.errors import GenerationExistsError, GenerationNotFoundError
from whence_server.journal.chain import SECRET_BYTES, inner_digest, next_hash
from whence_server.journal.derive import SpineEntry
from whence_server.journal.rows import Durability, FinishIndex, GenerationIndex
from whence_server.journal.store import (
    Batch,
    NewEntry,
    NewGeneration,
    NewOutsideEntry,
    State,
    Store,
)
from whence_server.journal.tail import LiveGeneration
from whence_server.journal.writer import Writer

_log = logging.getLogger(__name__)

# What an entry costs beside its payload while it waits: tuples, hash, bookkeeping.
_ENTRY_BYTES = 256
_OWN_METHODS = OUTSIDE_OFFSETS | {EntryKind.STARTED, EntryKind.FINISHED}


class Log:
    """One writer's log. Every method is called from one event loop's thread.

    Attributes:
        writer: commits what is appended.

    Appending is synchronous and touches no disk. While the disk is full or out of order (see
    `writer`), running generations may append and no new one begins. A failure for good is kept,
    and raised by whatever writes or waits afterwards; what was committed stays readable.
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
    ) -> None:
        self._store = store
        self._position = state.position
        self._hash = state.hash
        self._strict = durability is Durability.STRICT
        self._tail_entries = tail_entries
        self._uncalled = state.uncalled
        self._deleting: dict[str, list[SpineEntry]] = {}
        """Calls on generations that are being deleted, appended since the deletion began."""
        self._num_left_out = 0
        self._live = {
            u.index.generation_id: LiveGeneration(
                u.index, u.secret, u.started_position, offset=u.last_offset, recovered=True
            )
            for u in state.unfinished
        }
        self.writer = Writer(
            store,
            committed_position=state.position,
            durability=durability,
            commit_interval_s=commit_interval_s,
            max_pending_bytes=max_pending_bytes,
            on_commit=self._on_commit,
            on_failure=self._on_failure,
            patience_s=patience_s,
        )

    @property
    def position(self) -> int:
        """Of the newest entry, committed or not; 0 in an empty log."""
        return self._position

    @property
    def committed_position(self) -> int:
        """Everything up to it is on disk."""
        return self.writer.committed_position

    def unfinished(self) -> list[str]:
        """Ids of generations that an earlier run left open, oldest first: finish them."""
        return [i for i, live in self._live.items() if live.recovered and not live.finish]

    def uncalled(self) -> list[str]:
        """Ids of generations of an earlier run, finished or not, without any call on record."""
        return list(self._uncalled)

    def create(self, index: GenerationIndex, payload: bytes) -> int:
        """Append STARTED; returns its offset, 1.

        Raises:
            GenerationExistsError: the id was used before.
            JournalUnwritableError: the disk is full or out of order at present.
            JournalError: nothing more can be written.
        """
        self.writer.check_writable()
        generation_id = index.generation_id
        if generation_id in self._live:
            raise GenerationExistsError(generation_id)
        # One probe of an index, in this thread: readers never wait for the writer, and a
        # duplicate found only at the commit would take a whole batch with it.
        if (row := self._store.generation(generation_id)) is not None:
            raise GenerationExistsError(generation_id, deleted=row.deleted)
        live = LiveGeneration(index, secrets.token_bytes(SECRET_BYTES), self._position + 1)
        offset = self._append(live, EntryKind.STARTED, payload)
        self._live[generation_id] = live
        self.writer.pending.generations.append(
            NewGeneration(live.started_position, live.secret, index)
        )
        self.writer.submit()
        return offset

    def append(self, generation_id: str, kind: EntryKind, payload: bytes) -> int:
        """Append one of a running generation's own entries; returns its offset.

        Raises:
            GenerationNotFoundError: the generation is not running.
            JournalError: nothing more can be written.
            ValueError: the kind has a method of its own.
        """
        if kind in _OWN_METHODS:
            raise ValueError(f"{kind.name} entries have a method of their own")
        offset = self._append(self._running(generation_id), kind, payload)
        self.writer.submit()
        return offset

    def finish(self, generation_id: str, payload: bytes, index: FinishIndex) -> int:
        """Append FINISHED; returns its offset.

        Raises:
            GenerationNotFoundError: the generation is not running.
            JournalError: nothing more can be written.
        """
        live = self._running(generation_id)
        offset = self._append(live, EntryKind.FINISHED, payload)
        live.finish = index
        self.writer.pending.finished.append((generation_id, index))
        self.writer.submit()
        return offset

    def give_up(self, generation_id: str) -> None:
        """Let go of a generation that an earlier run left open and that cannot be finished.

        Nothing is written. Whoever follows it learns that its end is missing.
        """
        live = self._live.get(generation_id)
        if live is not None and live.recovered and live.finish is None:
            del self._live[generation_id]
            live.close()

    def record_call(self, generation_id: str, payload: bytes) -> None:
        """Append CALL, outside any generation's offsets.

        The entry is read back with `generation_id` if that is known here, else with "". While
        the disk is full or out of order, calls go on record as far as the bound on memory
        allows; the rest is counted and logged.

        Raises:
            JournalError: nothing more can be written.
        """
        if self.writer.stall is not None and self.writer.overfull:
            self._num_left_out += 1
            return
        position = self._append_outside(EntryKind.CALL, generation_id, payload)
        if (late := self._deleting.get(generation_id)) is not None:
            late.append(SpineEntry(position, 0, EntryKind.CALL, inner_digest(b"", payload)))
        self.writer.submit()

    async def writable(self) -> None:
        """Wait while too much is not on disk yet: back-pressure towards the engine.

        Raises:
            JournalError: nothing more can be written.
        """
        await self.writer.writable()

    async def flush(self) -> None:
        """Return once all that was appended so far is committed.

        Raises:
            JournalError: it could not be.
        """
        await self.writer.flush()

    def live(self, generation_id: str) -> LiveGeneration | None:
        """Return a generation that has no committed end yet; None for any other."""
        return self._live.get(generation_id)

    def begin_deletion(self, generation_id: str) -> None:
        """Remember the calls that are appended on a generation from now on.

        Raises:
            GenerationNotFoundError: its deletion is under way.
        """
        if generation_id in self._deleting:
            raise GenerationNotFoundError(generation_id, deleted=True)
        self._deleting[generation_id] = []

    def calls_since_deletion(self, generation_id: str) -> list[SpineEntry]:
        """Return the calls that were appended since `begin_deletion`."""
        return self._deleting[generation_id]

    def cancel_deletion(self, generation_id: str) -> None:
        """Take `begin_deletion` back: the generation stays."""
        del self._deleting[generation_id]

    def append_deletion(self, generation_id: str, deletion: bytes) -> None:
        """Append DELETED; the same transaction destroys the generation's content.

        Args:
            generation_id: one whose deletion has begun.
            deletion: the entry's payload.

        Raises:
            JournalError: nothing more can be written.
        """
        position = self._append_outside(EntryKind.DELETED, generation_id, deletion)
        self.writer.pending.deleted.append((generation_id, position))
        self.writer.submit()

    def _running(self, generation_id: str) -> LiveGeneration:
        live = self._live.get(generation_id)
        if live is None or live.finish is not None:
            raise GenerationNotFoundError(generation_id)
        return live

    def _append(self, live: LiveGeneration, kind: EntryKind, payload: bytes) -> int:
        position = self._chain(kind, live.secret, payload)
        live.offset = offset = live.offset + 1
        self.writer.pending.entries.append(
            NewEntry(position, live.started_position, offset, kind, payload, self._hash)
        )
        live.push(
            Entry(position, live.index.generation_id, offset, kind, payload),
            self.writer.committed_position,
            self._tail_entries,
        )
        if not self._strict:
            live.show(offset)
        return offset

    def _append_outside(self, kind: EntryKind, generation_id: str, payload: bytes) -> int:
        position = self._chain(kind, b"", payload)
        self.writer.pending.outside.append(
            NewOutsideEntry(position, generation_id, kind, payload, self._hash)
        )
        return position

    def _chain(self, kind: EntryKind, secret: bytes, payload: bytes) -> int:
        """Return out the next position, and moves the chain's hash on to it."""
        self.writer.check()
        self._hash = next_hash(self._hash, kind, inner_digest(secret, payload))
        self._position += 1
        pending = self.writer.pending
        pending.last_position = self._position
        pending.num_bytes += len(payload) + _ENTRY_BYTES
        return self._position

    def _on_commit(self, batch: Batch) -> None:
        if self._num_left_out:
            _log.error(
                "%d calls are not on record: they ended while the journal could not be written",
                self._num_left_out,
            )
            self._num_left_out = 0
        if self._strict:
            newest = {new.generation: new.offset for new in batch.entries}
            for live in self._live.values():
                if (offset := newest.get(live.started_position)) is not None:
                    live.show(offset)
        for generation_id, _ in batch.finished:
            live = self._live.pop(generation_id)
            # After those whom FINISHED has just woken: they take it from memory.
            asyncio.get_running_loop().call_soon(live.close)
        for generation_id, _ in batch.deleted:
            self._deleting.pop(generation_id, None)

    def _on_failure(self) -> None:
        for live in self._live.values():
            live.changed.notify()
