"""The keys of one journal: made, kept, found, and destroyed with their generations."""

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from whence_server.domain.errors import ConfigurationError, JournalUnwritableError
from whence_server.journal.sealing.data_key import DataKey
from whence_server.journal.sealing.forms import CLEAR, Form, StoredLabel
from whence_server.journal.sealing.key_source import FLAG
from whence_server.journal.sealing.key_store import KeyRows, KeyStore, WrappedKey, choose_key
from whence_server.journal.sealing.label_digests import digest_labels, spell_label
from whence_server.journal.sealing.master_keys import KEY_BYTES
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.sealed_form import SealedForm
from whence_server.journal.sealing.stored_form import KEY_ID_BYTES
from whence_server.journal.sealing.unwrapping import (
    LABEL_CONTEXT,
    make_context,
    unwrap_key,
)

MASTER, JOURNAL, LABEL_KEY = "master", "journal", "label_key"
"""Names of facts: the id of the master key that wraps new keys; the journal's id; the key of the
digests of labels, wrapped by that master key."""
_MAX_CACHED = 4_096


class _Cached(NamedTuple):
    """A data key in memory, and the time since which it is there, by the monotonic clock."""

    key: DataKey
    since: float


def _find_no_key(_generation_id: str) -> bytes:
    return b""


class Keyring:
    """Data keys of a journal's generations, wrapped by master keys.

    Attributes:
        read_key_id: returns the id of the key that a generation's STARTED entry names.

    `begin` is called on the event loop, and does not touch the disk; the others from any thread.
    """

    def __init__(self, database: KeyStore, masters: Masters) -> None:
        """Check that the master keys are those of the database; an empty one takes the newest.

        Raises:
            ConfigurationError: a master key is missing.
        """
        self.read_key_id: Callable[[str], bytes] = _find_no_key
        self._database = database
        self._masters = masters
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, _Cached] = OrderedDict()
        self._unsaved: dict[str, DataKey] = {}
        self._num_destroyed = 0
        database.write(self._found, exclusive=True)
        self._check_masters()
        self._current_id = (database.read_fact(MASTER) or b"").decode()
        self._label_key = unwrap_label_key(database, masters)

    def _found(self, rows: KeyRows) -> bool:
        """Write the facts of an empty database."""
        if rows.get_fact(MASTER) is None:
            newest = self._masters.newest
            rows.set_fact(MASTER, newest.id.encode())
            rows.set_fact(LABEL_KEY, newest.wrap(os.urandom(KEY_BYTES), LABEL_CONTEXT))
        return True

    def _check_masters(self) -> None:
        current = (self._database.read_fact(MASTER) or b"").decode()
        needed = {current: 0} | self._database.count_by_master()
        missing = [master_id for master_id in needed if self._masters.find(master_id) is None]
        if missing:
            raise ConfigurationError(
                f"{FLAG} {self._masters.source} gives {_list_ids(self._masters.ids)}, and "
                f"{self._database.name} needs {_list_ids(missing)}, which wraps "
                f"{sum(needed[master_id] for master_id in missing)} keys of generations: give the "
                "key that it was made with, or the old one below the new one until "
                "`whence-server key rotate` has ended"
            )

    # ---- making keys ----

    def begin(self, generation_id: str) -> Form:
        """Make a new generation's key, which `save` keeps."""
        key = DataKey(generation_id, os.urandom(KEY_ID_BYTES), os.urandom(KEY_BYTES))
        with self._lock:
            self._unsaved[generation_id] = key
            self._remember(key)
        return SealedForm(key, self.digest_labels)

    def resume(self, generation_id: str) -> Form:
        """Return the form of an unfinished generation of an earlier run.

        Raises:
            KeyMissingError: its key cannot be unwrapped.
        """
        key = self.find(generation_id)
        return CLEAR if key is None else SealedForm(key, self.digest_labels)

    def save(self, generation_ids: Iterable[str]) -> None:
        """Sync the keys of new generations to disk, before anything that they encrypt.

        Raises:
            JournalUnwritableError: the disk is full or failing, or the master key was rotated and
                the source has not the new one.
        """
        with self._lock:
            given = [self._unsaved[i] for i in generation_ids if i in self._unsaved]
        if not given:
            return
        while not self._database.write(partial(self._insert, given)):
            self._follow_rotation()
        with self._lock:
            for key in given:
                self._unsaved.pop(key.generation_id, None)

    def _insert(self, given: list[DataKey], rows: KeyRows) -> bool:
        """Store keys under the current master key; return False if it is no longer current."""
        if rows.get_fact(MASTER) != self._current_id.encode():
            return False
        master = self._masters.find(self._current_id)
        if master is None:
            return False
        rows.insert(
            [
                WrappedKey(
                    key.generation_id,
                    key.key_id,
                    master.id,
                    master.wrap(key.secret, make_context(key.generation_id, key.key_id)),
                )
                for key in given
            ]
        )
        return True

    def _follow_rotation(self) -> None:
        """Take the master key that a rotation has made the current one.

        Raises:
            JournalUnwritableError: the source has not the new one.
        """
        current = (self._database.read_fact(MASTER) or b"").decode()
        if self._masters.find(current) is None:
            raise JournalUnwritableError(
                f"the keys were rotated to the master key {current}, which {FLAG} "
                f"{self._masters.source} does not give"
            )
        self._current_id = current

    # ---- finding and destroying keys ----

    def find(self, generation_id: str) -> DataKey | None:
        """Return a generation's key; None if it has none.

        Raises:
            KeyMissingError: it cannot be unwrapped.
        """
        with self._lock:
            found = self._cache.get(generation_id)
            if found is not None:
                self._cache.move_to_end(generation_id)
                return found.key
            num_destroyed = self._num_destroyed
        wrapped = self._find_wrapped(generation_id)
        if wrapped is None:
            return None
        key = unwrap_key(self._masters, wrapped)
        with self._lock:
            if num_destroyed == self._num_destroyed:
                self._remember(key)
        return key

    def find_key_id(self, generation_id: str) -> bytes:
        """Return the id of a generation's key; b"" if it has none."""
        wrapped = self._find_wrapped(generation_id)
        return b"" if wrapped is None else wrapped.key_id

    def _find_wrapped(self, generation_id: str) -> WrappedKey | None:
        found = self._database.find(generation_id)
        return choose_key(found, partial(self.read_key_id, generation_id))

    def forget_older(self, age_s: float) -> None:
        """Drop keys from memory that were read before a time: other servers destroy keys too."""
        before = time.monotonic() - age_s
        with self._lock:
            for generation_id in [i for i, it in self._cache.items() if it.since < before]:
                del self._cache[generation_id]

    def doom(self, generation_ids: Iterable[str]) -> None:
        """Mark keys that `destroy` destroys once their generations are deleted on record."""
        self._database.doom(generation_ids)

    def destroy(self, generation_ids: Iterable[str]) -> None:
        """Destroy the keys of deleted generations."""
        given = list(generation_ids)
        self._database.destroy(given)
        with self._lock:
            self._num_destroyed += 1
            for generation_id in given:
                self._cache.pop(generation_id, None)
                self._unsaved.pop(generation_id, None)

    def list_doomed(self) -> list[str]:
        """Return the ids of generations whose deletion was interrupted."""
        return self._database.list_doomed()

    def spare(self, generation_ids: Iterable[str]) -> None:
        """Take `doom` back for generations that were not deleted after all."""
        self._database.spare(generation_ids)

    # ---- the rest ----

    def bind(self, journal_id: bytes) -> None:
        """Check that these are the keys of a journal; new keys become those of the journal.

        Args:
            journal_id: the id of the journal's first log.

        Raises:
            ConfigurationError: they belong to another journal.
        """
        if self._database.read_fact(JOURNAL) is None:
            self._database.write(partial(_set_journal, journal_id), exclusive=True)
        bound = self._database.read_fact(JOURNAL) or b""
        if bound != journal_id:
            raise ConfigurationError(
                f"{self._database.name} has the keys of journal {bound.hex()}, not of this one, "
                f"{journal_id.hex()}: give the right place with --journal-keys"
            )

    def digest_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return labels in the form in which encrypted generations are found by them."""
        return digest_labels(self._label_key, labels)

    def spell_label(self, name: str, value: str | None = None) -> list[StoredLabel]:
        """Return the two ways in which a label may be stored, as `Forms.spell_label`."""
        return spell_label(self._label_key, name, value)

    def close(self) -> None:
        """Close the database of keys."""
        self._database.close()

    def _remember(self, key: DataKey) -> None:
        self._cache[key.generation_id] = _Cached(key, time.monotonic())
        if len(self._cache) > _MAX_CACHED:
            self._cache.popitem(last=False)


def _set_journal(journal_id: bytes, rows: KeyRows) -> bool:
    # Another server may have done it meanwhile.
    if rows.get_fact(JOURNAL) is None:
        rows.set_fact(JOURNAL, journal_id)
    return True


def _list_ids(ids: Iterable[str]) -> str:
    return "the master key " + ", ".join(sorted(ids))


def unwrap_label_key(database: KeyStore, masters: Masters) -> bytes:
    """Return the key of the digests of labels.

    Raises:
        ConfigurationError: it cannot be read.
    """
    current_id = (database.read_fact(MASTER) or b"").decode()
    master = masters.find(current_id) or masters.newest
    try:
        return master.unwrap(database.read_fact(LABEL_KEY) or b"", LABEL_CONTEXT)
    except ValueError as error:
        raise ConfigurationError(
            f"{database.name} is damaged: the key of its labels cannot be read: {error}"
        ) from None
