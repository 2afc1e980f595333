"""The database of wrapped data keys, apart from the journal, so that a key can be destroyed.

A copy of the journal is worthless without it. It is written with a rollback journal that is
truncated after each transaction, and what is deleted is overwritten: no file keeps an old key.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.sqlite_errors import translate_corruption, translate_transient_errors

_APPLICATION_ID = 0x57686B79  # "Whky"
_VERSION = 1
_BUSY_MS = 10_000
_SCHEMA = f"""
CREATE TABLE facts (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE data_keys (
    generation_id TEXT PRIMARY KEY,
    key_id BLOB NOT NULL,
    master_id TEXT NOT NULL, -- of the master key that wraps it
    wrapped BLOB NOT NULL,
    doomed INTEGER NOT NULL DEFAULT 0 -- 1 while its generation is being deleted
) STRICT;
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
"""


class WrappedKey(NamedTuple):
    """A data key as it is stored."""

    generation_id: str
    key_id: bytes
    master_id: str
    wrapped: bytes


class KeyDatabase:
    """Keys of one journal on disk; its methods may be called from any thread.

    Attributes:
        path: path of the file.
    """

    def __init__(self, path: Path, *, create: bool = False, read_only: bool = False) -> None:
        """Open the file, and create it if it may be created.

        Raises:
            ConfigurationError: it is missing, of a newer version, or no file of keys.
        """
        self.path = path
        try:
            if create:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._writing: Any = _connect(path, read_only=read_only)
            _prepare(self._writing, create=create)
            self._reading: Any = _connect(path, read_only=read_only)
        except (apsw.Error, OSError) as error:
            raise ConfigurationError(
                f"{path} cannot be opened as a database of keys: {error}"
            ) from error
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()

    def read_fact(self, name: str) -> bytes | None:
        """Return a stored fact; None if there is none."""
        with self._read():
            found = self._reading.execute(
                "SELECT value FROM facts WHERE name = ?", (name,)
            ).fetchall()
        return found[0][0] if found else None

    def find(self, generation_id: str) -> WrappedKey | None:
        """Return a generation's key; None if it has none."""
        with self._read():
            found = self._reading.execute(
                "SELECT generation_id, key_id, master_id, wrapped FROM data_keys "
                "WHERE generation_id = ?",
                (generation_id,),
            ).fetchall()
        return WrappedKey(*found[0]) if found else None

    def count_by_master(self) -> dict[str, int]:
        """Return the number of data keys under each master key, by its id."""
        with self._read():
            return dict(
                self._reading.execute("SELECT master_id, count(*) FROM data_keys GROUP BY 1")
            )

    def list_doomed(self) -> list[str]:
        """Return the ids of generations whose deletion was interrupted."""
        with self._read():
            rows = self._reading.execute("SELECT generation_id FROM data_keys WHERE doomed = 1")
            return [generation_id for (generation_id,) in rows]

    def list_ids(self) -> list[str]:
        """Return the ids of all generations that have a key."""
        with self._read():
            rows = self._reading.execute("SELECT generation_id FROM data_keys")
            return [generation_id for (generation_id,) in rows]

    @contextmanager
    def _read(self) -> Iterator[None]:
        with self._read_lock, translate_transient_errors(), translate_corruption():
            yield

    def write(self, change: Callable[[Any], bool]) -> bool:
        """Call a function with a connection, in one transaction that is synced to disk.

        Args:
            change: changes the database through the functions of this module; False takes its
                changes back.

        Returns:
            The function's result.

        Raises:
            JournalUnwritableError: the disk is full or failing; nothing is changed.
        """
        with self._write_lock, translate_transient_errors():
            self._writing.execute("BEGIN IMMEDIATE")
            try:
                done = change(self._writing)
                self._writing.execute("COMMIT" if done else "ROLLBACK")
            finally:
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
        return done

    def doom(self, generation_ids: Iterable[str]) -> None:
        """Mark the keys of generations that are about to be deleted; raise as `write` does."""
        self._execute("UPDATE data_keys SET doomed = 1 WHERE generation_id = ?", generation_ids)

    def spare(self, generation_ids: Iterable[str]) -> None:
        """Take `doom` back; raise as `write` does."""
        self._execute("UPDATE data_keys SET doomed = 0 WHERE generation_id = ?", generation_ids)

    def destroy(self, generation_ids: Iterable[str]) -> None:
        """Overwrite the keys of generations, and remove them; raise as `write` does."""
        self._execute("DELETE FROM data_keys WHERE generation_id = ?", generation_ids)

    def _execute(self, statement: str, generation_ids: Iterable[str]) -> None:
        bindings = [(generation_id,) for generation_id in generation_ids]

        def change(connection: Any) -> bool:
            connection.executemany(statement, bindings)
            return True

        self.write(change)

    def close(self) -> None:
        """Close the file."""
        self._reading.close()
        self._writing.close()


def set_fact(connection: Any, name: str, value: bytes) -> None:
    """Store a fact, within `KeyDatabase.write`."""
    connection.execute(
        "INSERT INTO facts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value",
        (name, value),
    )


def get_fact(connection: Any, name: str) -> bytes | None:
    """Return a fact, within `KeyDatabase.write`; None if there is none."""
    found = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchall()
    return found[0][0] if found else None


def insert_keys(connection: Any, keys: Sequence[WrappedKey]) -> None:
    """Store data keys, within `KeyDatabase.write`; the same key may be stored again."""
    connection.executemany(
        "INSERT OR REPLACE INTO data_keys (generation_id, key_id, master_id, wrapped) "
        "VALUES (?, ?, ?, ?)",
        keys,
    )


def list_other_keys(connection: Any, master_id: str, limit: int) -> list[WrappedKey]:
    """Return some of the data keys that another master key wraps, within `KeyDatabase.write`."""
    rows = connection.execute(
        "SELECT generation_id, key_id, master_id, wrapped FROM data_keys WHERE master_id <> ? "
        "LIMIT ?",
        (master_id, limit),
    )
    return [WrappedKey(*row) for row in rows]


def replace_wrapped(connection: Any, keys: Sequence[WrappedKey]) -> None:
    """Replace wrapped keys by ones under another master key, within `KeyDatabase.write`."""
    connection.executemany(
        "UPDATE data_keys SET master_id = ?, wrapped = ? WHERE generation_id = ?",
        [(key.master_id, key.wrapped, key.generation_id) for key in keys],
    )


def _connect(path: Path, *, read_only: bool) -> Any:
    flags = apsw.SQLITE_OPEN_READONLY if read_only else apsw.SQLITE_OPEN_READWRITE
    connection = apsw.Connection(str(path), flags=flags)
    connection.set_busy_timeout(_BUSY_MS)
    if read_only:
        return connection
    connection.pragma("journal_mode", "truncate")
    connection.pragma("synchronous", "FULL")
    connection.pragma("secure_delete", "ON")
    connection.pragma("temp_store", "MEMORY")
    return connection


def _prepare(connection: Any, *, create: bool) -> None:
    """Create the tables in a new file, or check that the file has them.

    Raises:
        ConfigurationError: the file is of a newer version, or no file of keys.
    """
    with connection:
        found = connection.pragma("application_id")
        version = connection.pragma("user_version")
        if create and not connection.execute("SELECT count(*) FROM sqlite_schema").get:
            connection.execute(_SCHEMA)
        elif found != _APPLICATION_ID:
            raise ConfigurationError(
                f"{connection.filename} is another database, not one of keys: choose another "
                "--journal-keys"
            )
        elif version > _VERSION:
            raise ConfigurationError(
                f"{connection.filename} has version {version}, and this server supports up to "
                f"{_VERSION}: start the newer server that wrote it"
            )
