"""Verification of encrypted entries: each is decrypted, and compared with its columns."""

import dataclasses
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from whence.v1 import deletion_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ConfigurationError
from whence_server.journal.chain import ChainRow
from whence_server.journal.derive import derive_finished_index, derive_started_index
from whence_server.journal.findings import Finding, VerifyReport
from whence_server.journal.sealing.data_key import DataKey
from whence_server.journal.sealing.forms import StoredLabel
from whence_server.journal.sealing.key_source import FLAG
from whence_server.journal.sealing.key_store import KeyStore
from whence_server.journal.sealing.keyring import JOURNAL, unwrap_label_key
from whence_server.journal.sealing.label_digests import spell_label
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.stored_form import is_sealed, peek_key_id
from whence_server.journal.sealing.unwrapping import KeyMissingError, unwrap_key

CheckEnd = Callable[[ChainRow, bytes, DataKey], None]
"""Takes a FINISHED entry, its decrypted message, and the generation's key."""


def _is_not_deleted(_generation_id: str) -> bool:
    return False


def _ignore_end(_row: ChainRow, _message: bytes, _key: DataKey) -> None:
    pass


class KeysToVerify:
    """Keys of a journal, which are only read.

    Attributes:
        is_deleted: returns whether a generation was deleted after the verified state.
        patience_s: seconds that servers may take to destroy the key of a deleted generation.
    """

    def __init__(self, database: KeyStore, masters: Masters) -> None:
        """Join the database of keys with the master keys.

        Raises:
            ConfigurationError: a master key is missing.
        """
        self.is_deleted: Callable[[str], bool] = _is_not_deleted
        self.patience_s = 0.0
        self._database = database
        self._masters = masters
        missing = [i for i in self._database.count_by_master() if masters.find(i) is None]
        if missing:
            raise ConfigurationError(
                f"{FLAG} {masters.source} does not give the master key {missing[0]}, which wraps "
                f"keys in {database.name}"
            )

    def check_journal(self, journal_id: bytes) -> None:
        """Check that the keys are those of a journal.

        Raises:
            ConfigurationError: they are those of another one.
        """
        bound = self._database.read_fact(JOURNAL)
        if bound is not None and bound != journal_id:
            raise ConfigurationError(f"{self._database.name} has the keys of another journal")

    def spell_label(self, name: str, value: str | None = None) -> list[StoredLabel]:
        """Return the ways in which a label may be stored, as `Forms.spell_label`."""
        return spell_label(unwrap_label_key(self._database, self._masters), name, value)

    def has(self, generation_id: str, key_id: bytes) -> bool:
        """Return whether a generation's key is there."""
        return any(key.key_id == key_id for key in self._database.find(generation_id))

    def find(self, generation_id: str, key_id: bytes) -> DataKey:
        """Return a generation's key.

        Raises:
            KeyMissingError: there is none, it is another one, or it cannot be unwrapped.
        """
        found = self._database.find(generation_id)
        if not found:
            raise KeyMissingError("its key is not in the database of keys")
        key = next((key for key in found if key.key_id == key_id), None)
        if key is None:
            raise KeyMissingError("its key is not the one that it names")
        return unwrap_key(self._masters, key)

    def close(self) -> None:
        """Close the database of keys."""
        self._database.close()


class ContentCheck:
    """Comparison of what encrypted entries hold with the columns that follow from them.

    Call `begin` before each log, `take` with all its entries in the chain's order, then `end`.

    Args:
        report: takes the findings.
        keys: keys of the generations; None to leave their content encrypted.
        check_end: called with each decrypted end of a generation.
    """

    def __init__(
        self,
        report: VerifyReport,
        keys: KeysToVerify | None,
        check_end: CheckEnd = _ignore_end,
    ) -> None:
        self._check_end = check_end
        self._report = report
        self._keys = keys
        self._num_sealed = 0
        self._open: dict[int, DataKey] = {}
        """Keys of unfinished generations, by the position of their STARTED entry."""
        self._outliving: list[tuple[str, bytes]] = []
        """Deleted generations with their keys, which were still there."""

    def begin(self) -> None:
        """Begin with another log, whose positions are its own."""
        self._open.clear()

    def take(self, rows: list[ChainRow]) -> None:
        """Decrypt the encrypted ones of some entries."""
        for row in rows:
            if row.payload is None:
                continue
            if row.kind == EntryKind.STARTED and peek_key_id(row.payload):
                self._num_sealed += 1
                self._take_started(row, row.payload)
            elif row.kind == EntryKind.DELETED:
                self._take_deletion(row.payload)
            elif is_sealed(row.payload) and (key := self._open.get(row.generation)) is not None:
                self._take_entry(key, row, row.payload)

    def end(self) -> None:
        """Note what could not be looked into, and keys that outlived their generations."""
        if self._keys is not None and self._outliving:
            time.sleep(self._keys.patience_s)
            for generation_id, key_id in self._outliving:
                if self._keys.has(generation_id, key_id):
                    self._add(
                        generation_id,
                        "it is deleted, and its key is still there; `whence-server key prune` "
                        "destroys it",
                    )
        if self._num_sealed and self._keys is None:
            self._report.notes.append(
                f"{self._num_sealed} generations are encrypted: their content was not looked into; "
                "--journal-key decrypts it"
            )

    def _take_started(self, row: ChainRow, payload: bytes) -> None:
        if self._keys is None:
            return
        stored = derive_started_index(payload)
        try:
            key = self._keys.find(stored.generation_id, peek_key_id(payload))
            expected = derive_started_index(_open(key, row, payload))
            found = key.open_index(stored)
        except (KeyMissingError, ValueError) as error:
            if not self._keys.is_deleted(stored.generation_id):
                self._add(stored.generation_id, str(error))
            return
        self._open[row.generation] = key
        for field in dataclasses.fields(found):
            here, there = getattr(found, field.name), getattr(expected, field.name)
            if here != there:
                self._report.add(Finding("content", key.generation_id, field.name, here, there))

    def _take_entry(self, key: DataKey, row: ChainRow, payload: bytes) -> None:
        try:
            message = _open(key, row, payload)
            if row.kind == EntryKind.FINISHED:
                del self._open[row.generation]
                expected = derive_finished_index(message)
                found = key.open_finish(derive_finished_index(payload))
                if found != expected:
                    self._report.add(
                        Finding("content", key.generation_id, "its end", found, expected)
                    )
                self._check_end(row, message, key)
        except ValueError as error:
            self._add(key.generation_id, f"the entry at position {row.position}: {error}")

    def _take_deletion(self, payload: bytes) -> None:
        if self._keys is None:
            return
        try:
            deletion = deletion_pb2.Deletion.FromString(payload)
        except DecodeError:
            return  # The comparison of the columns reports it.
        if self._keys.has(deletion.generation_id, deletion.destroyed_key_id):
            self._outliving.append((deletion.generation_id, deletion.destroyed_key_id))

    def _add(self, generation_id: str, detail: str) -> None:
        self._report.add(Finding("content", generation_id, detail=detail))


def _open(key: DataKey, row: ChainRow, payload: bytes) -> bytes:
    kind = EntryKind(row.kind)
    return key.open_entry(Entry(row.position, key.generation_id, row.offset, kind, payload))
