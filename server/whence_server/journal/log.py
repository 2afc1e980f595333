"""The appending half of the journal: it assigns positions, offsets and hashes."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import NamedTuple

from whence_server.domain.entries import OUTSIDE_OFFSETS, Entry, EntryKind
from whence_server.domain.errors import GenerationExistsError, GenerationNotFoundError, JournalError
from whence_server.journal.attestor import Attestor, Leaves
from whence_server.journal.chain import SECRET_BYTES, Origin, digest_payload, extend_hash
from whence_server.journal.derive import EntryDigest
from whence_server.journal.rows import Durability, FinishIndex, GenerationIndex
from whence_server.journal.sealing.forms import CLEAR_FORMS, Form, Forms
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

# Bytes of a pending entry besides its payload: tuples, hash, bookkeeping.
_ENTRY_BYTES = 256
_INT64 = 2**63
_OWN_METHODS = OUTSIDE_OFFSETS | {EntryKind.STARTED, EntryKind.FINISHED}


class EndedGeneration(NamedTuple):
    """A generation whose end is on disk, as an entry after its end needs it.

    Attributes:
        started_position: position of its STARTED entry.
        secret: the chain's key for its entries.
        form: converts its entries to what is stored.
    """

    started_position: int
    secret: bytes
    form: Form


class Log:
    """One writer's log; every method must be called from the event loop's thread.

    Attributes:
        writer: commits what is appended.
        on_append: called with the owner and the size of each entry of a generation.
        attestor: signs the ends of generations; None to sign none.
        held_ids: ids that a generation may take without a look-up.
        num_deletions: number of deletions that have begun.

    Appending is synchronous and touches no disk. While the disk is full or failing, running
    generations may append and no new one starts. Every later write or wait raises a final error
    again; committed entries stay readable.
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
        forms: Forms = CLEAR_FORMS,
    ) -> None:
        self._store = store
        self._position = state.position
        self._hash = state.hash
        self._strict = durability is Durability.STRICT
        self._tail_entries = tail_entries
        self._uncalled = state.uncalled
        self._deleting: dict[str, list[EntryDigest]] = {}
        """CALL entries appended during the deletion of a generation, by generation id."""
        self._num_left_out = 0
        self._num_audits_left_out = 0
        self.attestor: Attestor | None = None
        self.held_ids: set[str] = set()
        self.num_deletions = 0
        self._forms = forms
        self.on_append: Callable[[str, int], None] = lambda *_: None
        self._live = {
            u.index.generation_id: LiveGeneration(
                u.index,
                u.secret,
                u.started_position,
                offset=u.last_offset,
                recovered=True,
                form=forms.resume(u.index.generation_id),
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
        """Position of the newest entry, committed or not; 0 in an empty log."""
        return self._position

    @property
    def committed_position(self) -> int:
        """Position of the newest entry on disk; 0 in an empty log."""
        return self.writer.committed_position

    @property
    def trouble(self) -> JournalError | None:
        """Error that prevents new generations, temporary or final; None if there is none."""
        return self.writer.error or self.writer.stall

    def list_unfinished(self) -> list[str]:
        """Return the ids of generations that an earlier run left unfinished, oldest first."""
        return [i for i, live in self._live.items() if live.recovered and not live.finish]

    def list_uncalled(self) -> list[str]:
        """Return the ids of an earlier run's generations that have no CALL entry."""
        return list(self._uncalled)

    def create(self, index: GenerationIndex, payload: bytes) -> int:
        """Append STARTED; return its offset, 1.

        Raises:
            GenerationExistsError: the id was used before.
            JournalUnwritableError: the disk is full or failing at present.
            JournalError: nothing more can be written.
            ValueError: the start time has more than 64 bits.
        """
        self.writer.check_writable()
        if not -_INT64 <= index.start_time_ns < _INT64:
            # The transaction would fail for good, with the entries of all others in it.
            raise ValueError(f"start_time_ns {index.start_time_ns} has more than 64 bits")
        generation_id = index.generation_id
        if generation_id in self._live:
            raise GenerationExistsError(generation_id)
        # A duplicate found only at the commit would make a whole batch fail. Without a hold, one
        # index look-up in this thread: readers never wait for the writer.
        if generation_id not in self.held_ids:
            self._store.take_id(generation_id)
        live = LiveGeneration(
            index,
            secrets.token_bytes(SECRET_BYTES),
            self._position + 1,
            form=self._forms.begin(generation_id),
        )
        stored, stored_index = live.form.store_start(live.started_position, payload, index)
        offset = self._append(live, EntryKind.STARTED, payload, stored)
        self._live[generation_id] = live
        if self.attestor is not None:
            live.leaves = self.attestor.begin(generation_id)
            live.leaves.add(EntryKind.STARTED, payload)
        self.writer.pending.generations.append(
            NewGeneration(live.started_position, live.secret, stored_index)
        )
        self.writer.submit()
        return offset

    def append(self, generation_id: str, kind: EntryKind, payload: bytes) -> int:
        """Append an entry of a running generation; return its offset.

        Raises:
            GenerationNotFoundError: the generation is not running.
            JournalError: nothing more can be written.
            ValueError: another method appends entries of this kind.
        """
        if kind in _OWN_METHODS:
            raise ValueError(f"append() takes no {kind.name} entries: another method appends them")
        live = self._get_running(generation_id)
        stored = live.form.store(self._position + 1, live.offset + 1, kind, payload)
        offset = self._append(live, kind, payload, stored)
        if live.leaves is not None:
            live.leaves.add(kind, payload)
        self.writer.submit()
        return offset

    def begin_leaves(self, generation_id: str) -> Leaves | None:
        """Return the digest of an unfinished generation's entries, empty; None if nobody signs.

        Raises:
            GenerationNotFoundError: the generation is not running.
        """
        live = self._get_running(generation_id)
        if self.attestor is not None:
            live.leaves = self.attestor.begin(generation_id, recovered=live.recovered)
        return live.leaves

    def finish(self, generation_id: str, payload: bytes, index: FinishIndex) -> int:
        """Append FINISHED with its signed statement; return its offset.

        Raises:
            GenerationNotFoundError: the generation is not running.
            JournalError: nothing more can be written.
        """
        live = self._get_running(generation_id)
        if live.leaves is not None:
            live.statement, live.leaves = live.leaves.sign(payload), None
            payload += live.statement
        stored, stored_index = live.form.store_finish(
            self._position + 1, live.offset + 1, payload, index
        )
        offset = self._append(live, EntryKind.FINISHED, payload, stored)
        live.finish = index
        self.writer.pending.finished.append((generation_id, stored_index))
        self.writer.submit()
        return offset

    def give_up(self, generation_id: str) -> None:
        """Drop a generation that an earlier run left unfinished and that cannot be finished.

        Nothing is written. Its readers get an error that its end is missing.
        """
        live = self._live.get(generation_id)
        if live is not None and live.recovered and live.finish is None:
            del self._live[generation_id]
            live.close()

    def record_call(self, generation_id: str, payload: bytes) -> None:
        """Append CALL, outside any generation's offsets.

        Readers see the entry with `generation_id` if the generation is known, else with "". While
        the disk is full or failing, calls are kept up to the bound on pending bytes; further ones
        are dropped, counted and logged.

        Raises:
            JournalError: nothing more can be written.
        """
        if self.writer.stall is not None and self.writer.overfull:
            self._num_left_out += 1
            return
        position = self._append_outside(EntryKind.CALL, generation_id, payload)
        if (late := self._deleting.get(generation_id)) is not None:
            digest = digest_payload(EntryKind.CALL, b"", payload)
            late.append(EntryDigest(position, 0, EntryKind.CALL, digest))
        self.writer.submit()

    def record_occurrence(self, generation_id: str, payload: bytes) -> None:
        """Append OCCURRENCE of a running generation, outside its offsets.

        Raises:
            GenerationNotFoundError: the generation is not running.
            JournalError: nothing more can be written.
        """
        live = self._get_running(generation_id)
        self._append_occurrence(live.started_position, live.secret, live.form, payload)

    def record_later(self, ended: EndedGeneration, owner: str, payload: bytes) -> None:
        """Append OCCURRENCE of a generation whose end is on disk, and that is not deleted.

        Raises:
            JournalError: nothing more can be written.
        """
        num_bytes = self._append_occurrence(
            ended.started_position, ended.secret, ended.form, payload
        )
        self.on_append(owner, num_bytes)

    def _append_occurrence(
        self, started_position: int, secret: bytes, form: Form, payload: bytes
    ) -> int:
        """Append OCCURRENCE; return the number of bytes that are stored."""
        stored = form.store(self._position + 1, 0, EntryKind.OCCURRENCE, payload)
        position = self._extend_chain(EntryKind.OCCURRENCE, secret, stored)
        self.writer.pending.entries.append(
            NewEntry(position, started_position, 0, EntryKind.OCCURRENCE, stored, self._hash)
        )
        self.writer.submit()
        return len(stored)

    def record_audit(self, payload: bytes) -> None:
        """Append AUDIT, which belongs to no generation; left out and counted as calls are.

        Raises:
            JournalError: nothing more can be written.
        """
        if self.writer.stall is not None and self.writer.overfull:
            self._num_audits_left_out += 1
            return
        self._append_outside(EntryKind.AUDIT, "", payload)
        self.writer.submit()

    async def flush(self) -> None:
        """Wait until everything appended so far is committed.

        Raises:
            JournalError: it could not be committed.
        """
        await self.writer.flush()

    def get_live(self, generation_id: str) -> LiveGeneration | None:
        """Return a generation whose FINISHED entry is not committed yet; None for any other."""
        return self._live.get(generation_id)

    def begin_deletion(self, generation_id: str) -> None:
        """Keep the CALL entries that are appended for a generation from now on.

        Raises:
            GenerationNotFoundError: its deletion is under way.
        """
        if generation_id in self._deleting:
            raise GenerationNotFoundError(generation_id, deleted=True)
        self._deleting[generation_id] = []
        self.num_deletions += 1

    def is_deleting(self, generation_id: str) -> bool:
        """Return whether a deletion of a generation has begun and is not committed."""
        return generation_id in self._deleting

    def list_calls_since_deletion(self, generation_id: str) -> list[EntryDigest]:
        """Return the calls that were appended since `begin_deletion`."""
        return self._deleting[generation_id]

    def cancel_deletion(self, generation_id: str) -> None:
        """Take `begin_deletion` back: the generation stays."""
        del self._deleting[generation_id]

    def append_deletion(self, generation_id: str, deletion: bytes) -> None:
        """Append DELETED; the same transaction destroys the generation's content.

        Args:
            generation_id: id of a generation whose deletion has begun.
            deletion: the entry's payload.

        Raises:
            JournalError: nothing more can be written.
        """
        position = self._append_outside(EntryKind.DELETED, generation_id, deletion)
        self.writer.pending.deleted.append((generation_id, position))
        self.writer.submit()

    def append_removal(self, origin: Origin, deletion: bytes) -> None:
        """Append DELETED about the removal of the oldest entries; its transaction removes them.

        Args:
            origin: the last entry to remove.
            deletion: the entry's payload.

        Raises:
            JournalError: nothing more can be written.
        """
        self._append_outside(EntryKind.DELETED, "", deletion)
        self.writer.pending.removed = origin
        self.writer.submit()

    def _get_running(self, generation_id: str) -> LiveGeneration:
        live = self._live.get(generation_id)
        if live is None or live.finish is not None:
            raise GenerationNotFoundError(generation_id)
        return live

    def _append(self, live: LiveGeneration, kind: EntryKind, payload: bytes, stored: bytes) -> int:
        """Append an entry whose readers get `payload`, and which is stored as `stored`."""
        position = self._extend_chain(kind, live.secret, stored)
        self.on_append(live.index.owner, len(stored))
        live.offset = offset = live.offset + 1
        self.writer.pending.entries.append(
            NewEntry(position, live.started_position, offset, kind, stored, self._hash)
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
        position = self._extend_chain(kind, b"", payload)
        self.writer.pending.outside.append(
            NewOutsideEntry(position, generation_id, kind, payload, self._hash)
        )
        return position

    def _extend_chain(self, kind: EntryKind, secret: bytes, payload: bytes) -> int:
        """Extend the chain by one entry; return its position."""
        self.writer.check()
        self._hash = extend_hash(self._hash, kind, digest_payload(kind, secret, payload))
        self._position += 1
        pending = self.writer.pending
        pending.last_position = self._position
        pending.num_bytes += len(payload) + _ENTRY_BYTES
        return self._position

    def _on_commit(self, batch: Batch) -> None:
        if self._num_left_out:
            _log.error(
                "%d calls were not recorded: they ended while the journal could not be written",
                self._num_left_out,
            )
            self._num_left_out = 0
        if self._num_audits_left_out:
            _log.error(
                "%d audit records were left out: the journal could not be written",
                self._num_audits_left_out,
            )
            self._num_audits_left_out = 0
        if self._strict:
            newest = {new.generation: new.offset for new in batch.entries if new.offset}
            for live in self._live.values():
                if (offset := newest.get(live.started_position)) is not None:
                    live.show(offset)
        for generation_id, _ in batch.finished:
            live = self._live.pop(generation_id)
            # Closed after the readers that FINISHED has just woken have taken it from memory.
            asyncio.get_running_loop().call_soon(live.close)
        for generation_id, _ in batch.deleted:
            self._deleting.pop(generation_id, None)

    def _on_failure(self) -> None:
        for live in self._live.values():
            live.changed.notify()
