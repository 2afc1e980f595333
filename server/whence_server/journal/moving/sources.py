"""Journals that are read for a copy, each in one state."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import apsw

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.lock import DirectoryLock
from whence_server.journal.moving.tables import Table
from whence_server.journal.schema import MIGRATIONS
from whence_server.journal.sealing.sealed_logs import has_sealed

_BUSY_MS = 5_000


class Source(Protocol):
    """One state of a journal."""

    def has_sealed(self) -> bool:
        """Return whether the newest generation of a log is encrypted."""

    def read(self, table: Table) -> Iterator[tuple[Any, ...]]:
        """Yield all rows of a table, in the order of its key."""


class DirectorySource:
    """The SQLite journal of a directory, which a server may be using."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def read(self, table: Table) -> Iterator[tuple[Any, ...]]:
        """Yield all rows of a table, in the order of its key."""
        yield from self._connection.execute(table.make_select())

    def has_sealed(self) -> bool:
        """Return whether the newest generation of a log is encrypted."""
        return has_sealed(self._connection)


@contextmanager
def open_directory(data_dir: Path, *, exclusive: bool) -> Iterator[DirectorySource]:
    """Open the journal of a directory in its present state; change nothing in it.

    Args:
        data_dir: the directory.
        exclusive: whether no server may use it meanwhile.

    Raises:
        ConfigurationError: it holds no journal of this version, or a server uses it.
    """
    path = data_dir / "journal.db"
    if not path.is_file():
        raise ConfigurationError(f"{data_dir} holds no journal: it has no file journal.db")
    if not path.stat().st_size:
        raise ConfigurationError(
            f"{data_dir} holds no journal: its journal.db is empty, as a server with --journal "
            "leaves it; give the URL of its journal"
        )
    lock = DirectoryLock(data_dir) if exclusive else None
    try:
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(_BUSY_MS)
        try:
            with connection:
                _check_version(connection.pragma("user_version"), str(data_dir))
                yield DirectorySource(connection)
        finally:
            connection.close()
    except apsw.Error as error:
        raise ConfigurationError(f"the journal in {data_dir} cannot be read: {error}") from error
    finally:
        if lock is not None:
            lock.release()


def _check_version(version: int, where: str) -> None:
    if version != len(MIGRATIONS):
        remedy = (
            "start the newer version that wrote it"
            if version > len(MIGRATIONS)
            else "start a server on it once, which brings it up to date"
        )
        raise ConfigurationError(
            f"{where} has schema version {version}, and this program copies version "
            f"{len(MIGRATIONS)}: {remedy}"
        )
