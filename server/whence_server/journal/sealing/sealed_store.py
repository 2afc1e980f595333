"""A store whose entries are encrypted: it opens what it reads, in the reader's thread."""

import dataclasses
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, TypeVar

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationNotFoundError,
    JournalUnwritableError,
    RecordDamagedError,
)
from whence_server.journal.chain import ChainRow, Origin
from whence_server.journal.derive import EntryDigest
from whence_server.journal.listing import PageKey
from whence_server.journal.rows import GenerationIndex, GenerationRow, ListFilter
from whence_server.journal.sealing.data_key import DataKey
from whence_server.journal.sealing.keyring import Keyring
from whence_server.journal.sealing.pages import merge_pages
from whence_server.journal.sealing.stored_form import ENTRY_MARK, is_sealed_entry
from whence_server.journal.sealing.unwrapping import KeyMissingError
from whence_server.journal.store import Batch, LogEnd, Owned, Page, State, Store, Unfinished

_log = logging.getLogger(__name__)

T = TypeVar("T")


class SealedStore:
    """Any other store, with the keys of its encrypted generations.

    The log encrypts what it appends (`Keyring` gives it the forms). Generations from before the
    encryption was turned on are stored in clear, and read as they are.
    """

    def __init__(self, store: Store, keys: Keyring) -> None:
        self._store = store
        self._keys = keys
        self._doomed: set[str] = set()
        """Deleted generations whose keys are to be destroyed."""

    @property
    def stored(self) -> Store:
        """The store below, which reads what is stored as it is stored."""
        return self._store

    @property
    def size_bytes(self) -> int:
        """Size of the store on disk, without the keys."""
        return self._store.size_bytes

    def load_state(self) -> State:
        """Read the state of the log, and end deletions that were interrupted."""
        state = self._store.load_state()
        self._end_deletions()
        return state._replace(unfinished=list(self._open_unfinished(state.unfinished)))

    def _end_deletions(self) -> None:
        doomed = self._keys.list_doomed()
        deleted = self._list_deleted(doomed)
        self._keys.destroy(deleted)
        self._keys.spare(set(doomed) - set(deleted))

    def _list_deleted(self, generation_ids: list[str]) -> list[str]:
        """Return those of some generations that are deleted on record."""
        rows = {i: self._store.find_generation(i) for i in generation_ids}
        return [i for i, row in rows.items() if row is not None and row.deleted]

    def read_key_id(self, generation_id: str) -> bytes:
        """Return the id of the key that a generation's STARTED entry names; b"" without one."""
        row = self._store.find_generation(generation_id)
        return b"" if row is None else row.key_id

    def _open_unfinished(self, unfinished: list[Unfinished]) -> Iterator[Unfinished]:
        """Yield the generations that can be finished: those whose key is there."""
        for generation in unfinished:
            row = self._store.find_generation(generation.index.generation_id)
            opened = None if row is None else self._open_row(row)
            if opened is None or (row is not None and opened.damage != row.damage):
                _log.error(
                    "generation %s was interrupted, and its FINISHED entry cannot be appended: %s",
                    generation.index.generation_id,
                    opened.damage if opened else "it has no row",
                )
            else:
                yield dataclasses.replace(generation, index=opened.index)

    # ---- the writer's thread ----

    def write(self, batch: Batch) -> None:
        """Commit a batch: first the keys of its generations, last the end of those it deletes.

        Raises:
            JournalUnwritableError: a disk is full or failing; the batch may be tried again.
        """
        self._keys.save(new.index.generation_id for new in batch.generations)
        doomed = [generation_id for generation_id, _ in batch.deleted]
        if doomed:
            # A crash before the end leaves a mark by which the next start destroys the keys.
            self._keys.doom(doomed)
        self._store.write(batch)
        if doomed:
            self._doomed.update(doomed)
            # The batch is committed: it must not be tried again.
            with suppress(JournalUnwritableError):
                self.truncate_log()

    def truncate_log(self) -> bool:
        """Remove deleted content from the write-ahead log, and destroy its keys.

        Returns:
            False if a reader holds the log, or the keys could not be destroyed yet.
        """
        # The DELETED entries are on disk since their commit: a power failure must not leave
        # generations without their keys that no entry says are deleted.
        cleared = self._store.truncate_log()
        return self._destroy_doomed() and cleared

    def _destroy_doomed(self) -> bool:
        """Destroy the keys of deleted generations; return False if the disk is full or failing."""
        if not self._doomed:
            return True
        try:
            self._keys.destroy(self._doomed)
        except JournalUnwritableError as error:
            _log.error(
                "the keys of %d deleted generations are not destroyed yet: %s",
                len(self._doomed),
                error.detail,
            )
            return False
        self._doomed.clear()
        return True

    def change_tree(self, change: Callable[[Any], T]) -> T:
        """Change the tables of the transparency log, which are in clear."""
        return self._store.change_tree(change)

    # ---- any thread ----

    def read_tree(self, read: Callable[[Any], T]) -> T:
        """Read the tables of the transparency log, which are in clear."""
        return self._store.read_tree(read)

    def take_id(self, generation_id: str) -> None:
        """Take an id for a new generation; raise as `Store.take_id` does."""
        self._store.take_id(generation_id)

    def find_generation(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""
        row = self._store.find_generation(generation_id)
        return None if row is None else self._open_row(row)

    def has_sealed(self) -> bool:
        """Return whether a log's newest generation is encrypted."""
        return self._store.has_sealed()

    def read_journal_id(self) -> bytes:
        """Return the id of the database's first log."""
        return self._store.read_journal_id()

    def read_page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
    ) -> Page:
        """Return a page of generations, newest first, without deleted ones.

        A page of a list by label may have twice `max_bytes`: generations in clear come from
        another list than encrypted ones.
        """
        page = self._store.read_page(list_filter, beyond, limit, max_bytes)
        if list_filter.labels:
            by_digest = dataclasses.replace(
                list_filter, labels=self._keys.digest_labels(list_filter.labels)
            )
            sealed = self._store.read_page(by_digest, beyond, limit, max_bytes)
            page = merge_pages(page, sealed, limit)
        return Page([self._open_row(row) for row in page.rows], page.end)

    def find_ended(self, generation_id: str) -> tuple[int, bytes]:
        """Return a generation's position and secret."""
        return self._store.find_ended(generation_id)

    def read_entry_digests(self, generation_id: str) -> tuple[int, list[EntryDigest]]:
        """Return the position of a generation's STARTED entry, and its entries' digests."""
        return self._store.read_entry_digests(generation_id)

    def read(
        self,
        generation_id: str,
        after_offset: int,
        *,
        limit: int,
        max_bytes: int,
        kinds: Collection[EntryKind] | None = None,
    ) -> list[Entry]:
        """Read a generation's own entries up to either bound; at least one if there is one.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are damaged, or its key is missing.
        """
        entries = self._store.read(
            generation_id, after_offset, limit=limit, max_bytes=max_bytes, kinds=kinds
        )
        return self._open_own(generation_id, entries)

    def read_last(self, generation_id: str) -> Entry:
        """Return a generation's newest own entry; raise as `read` does."""
        return self._open_own(generation_id, [self._store.read_last(generation_id)])[0]

    def read_all(self, after_position: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """Read entries of all kinds by position, up to either bound.

        One that cannot be decrypted is returned as UNREADABLE; one whose generation is deleted
        meanwhile without content.
        """
        return self._open_all(
            self._store.read_all(after_position, limit=limit, max_bytes=max_bytes)
        )

    def read_finished(self, after_position: int, up_to_position: int, limit: int) -> list[Entry]:
        """Read FINISHED entries by position, opened as `read_all` opens them."""
        return self._open_all(self._store.read_finished(after_position, up_to_position, limit))

    def _open_all(self, entries: list[Entry]) -> list[Entry]:
        """Open those of some entries that are encrypted, in place; return them all."""
        keys: dict[str, DataKey] = {}
        for place, entry in enumerate(entries):
            if is_sealed_entry(entry.kind, entry.payload):
                entries[place] = self._open_any(entry, keys)
        return entries

    def list_logs(self) -> list[LogEnd]:
        """Return every log of the database with the position of its newest committed entry."""
        return self._store.list_logs()

    def read_audit(self, writer: int, before_position: int, limit: int) -> list[Entry]:
        """Read AUDIT entries of a log before a position, the newest first; they are in clear."""
        return self._store.read_audit(writer, before_position, limit)

    def measure_owner(self, owner: str) -> Owned:
        """Count the bytes of the entries of a caller's generations, as they are stored."""
        return self._store.measure_owner(owner)

    def read_origin(self) -> Origin | None:
        """Return the place at which the log begins; None if no entry was removed."""
        return self._store.read_origin()

    def read_chain(self, after_position: int, limit: int) -> list[ChainRow]:
        """Read entries with everything that their hashes cover, as they are stored."""
        return self._store.read_chain(after_position, limit)

    def close(self) -> None:
        """Close the store and the keys."""
        try:
            self._store.close()
        finally:
            self._keys.close()

    # ---- opening ----

    def _open_own(self, generation_id: str, entries: list[Entry]) -> list[Entry]:
        key: DataKey | None = None
        for place, entry in enumerate(entries):
            if is_sealed_entry(entry.kind, entry.payload):
                key = key or self._find_key(generation_id)
                entries[place] = _open_entry(key, entry)
        return entries

    def _find_key(self, generation_id: str) -> DataKey:
        """Return the key of a generation that is encrypted.

        Raises:
            GenerationNotFoundError: it was deleted meanwhile.
            RecordDamagedError: its key is missing.
        """
        try:
            key = self._keys.find(generation_id)
        except KeyMissingError as error:
            raise RecordDamagedError(generation_id, str(error)) from None
        if key is None:
            row = self._store.find_generation(generation_id)
            if row is None or row.deleted:
                raise GenerationNotFoundError(generation_id, deleted=row is not None)
            raise RecordDamagedError(generation_id, "its key is not in the database of keys")
        return key

    def _open_any(self, entry: Entry, keys: dict[str, DataKey]) -> Entry:
        """Open an entry with the keys that were found for this batch, in which more are put."""
        try:
            key = keys.get(entry.generation_id)
            if key is None:
                key = keys[entry.generation_id] = self._find_key(entry.generation_id)
            return _open_entry(key, entry)
        except GenerationNotFoundError:
            return entry._replace(payload=b"")
        except RecordDamagedError:
            return entry._replace(kind=EntryKind.UNREADABLE, payload=b"")

    def _open_row(self, row: GenerationRow) -> GenerationRow:
        if not row.key_id or row.deleted or row.foreign:
            return row
        try:
            key = self._find_key(row.generation_id)
            index = key.open_index(row.index)
            finish = None if row.finish is None else key.open_finish(row.finish)
        except GenerationNotFoundError:
            return GenerationRow(_hide(row.index), None, deleted=True)
        except (ValueError, RecordDamagedError) as error:
            detail = error.detail if isinstance(error, RecordDamagedError) else str(error)
            finish = row.finish and dataclasses.replace(row.finish, text_preview="")
            damage = row.damage or f"its content cannot be decrypted: {detail}"
            return GenerationRow(_hide(row.index), finish, damage=damage, key_id=row.key_id)
        return GenerationRow(index, finish, damage=row.damage, key_id=row.key_id)


def _open_entry(key: DataKey, entry: Entry) -> Entry:
    position, generation_id, offset, kind, payload = entry
    try:
        if payload[:2] == ENTRY_MARK:
            message = key.open_step(position, offset, kind, payload)
        else:
            message = key.open_entry(entry)
    except ValueError as error:
        raise RecordDamagedError(generation_id, f"its entry {offset}: {error}") from None
    return Entry(position, generation_id, offset, kind, message)


def _hide(index: GenerationIndex) -> GenerationIndex:
    return dataclasses.replace(index, labels={}, prompt_preview="")
