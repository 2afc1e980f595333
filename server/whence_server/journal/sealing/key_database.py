"""The database of wrapped data keys in SQLite, apart from the journal.

A copy of the journal is worthless without it. It is written with a rollback journal that is
truncated after each transaction, and what is deleted is overwritten: no file keeps an old key.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apsw

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.sealing.key_store import KeyRows, KeyWrites, WrappedKey
from whence_server.journal.sqlite_errors import translate_corruption, translate_transient_errors

_APPLICATION_ID = 0x57686B79  # "Whky"
_VERSION = 1
_BUSY_MS = 10_000
_UNIQUE = "generation_id"
_MENDED = "; a crash may have left a transaction, which the next start of the server takes back"
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


class KeyDatabase(KeyWrites):
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
                + (_MENDED if isinstance(error, apsw.ReadOnlyError) else "")
            ) from error
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()

    @property
    def name(self) -> str:
        """Path of the file."""
        return str(self.path)

    def read_fact(self, name: str) -> bytes | None:
        """Return a stored fact; None if there is none."""
        with self._read() as rows:
            return rows.get_fact(name)

    def find(self, generation_id: str) -> list[WrappedKey]:
        """Return a generation's keys, which are one at most."""
        with self._read() as rows:
            return rows.find(generation_id)

    def count_by_master(self) -> dict[str, int]:
        """Return the number of data keys under each master key, by its id."""
        with self._read() as rows:
            return rows.count_by_master()

    def list_doomed(self) -> list[str]:
        """Return the ids of generations whose deletion was interrupted."""
        with self._read() as rows:
            return rows.list_doomed()

    def list_keys(self) -> list[tuple[str, bytes]]:
        """Return the generation's id and the key's id of every key."""
        with self._read() as rows:
            return rows.list_keys()

    def read_all(self) -> list[WrappedKey]:
        """Return all keys."""
        with self._read() as rows:
            return rows.read_all()

    @contextmanager
    def _read(self) -> Iterator[KeyRows]:
        with self._read_lock, translate_transient_errors(), translate_corruption():
            yield KeyRows(self._reading, _UNIQUE)

    def write(self, change: Callable[[KeyRows], bool], *, exclusive: bool = False) -> bool:
        """Call a function with the rows in one transaction, as `KeyStore.write`.

        No other transaction of SQLite ever writes meanwhile.
        """
        del exclusive
        with self._write_lock, translate_transient_errors():
            self._writing.execute("BEGIN IMMEDIATE")
            try:
                done = change(KeyRows(self._writing, _UNIQUE))
                self._writing.execute("COMMIT" if done else "ROLLBACK")
            finally:
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
        return done

    def close(self) -> None:
        """Close the file."""
        self._reading.close()
        self._writing.close()


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
