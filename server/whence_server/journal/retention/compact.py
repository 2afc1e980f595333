"""`whence-server compact`: space of deleted content goes back to the file system."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.retention import spell_size
from whence_server.journal.lock import DirectoryInUseError, DirectoryLock
from whence_server.journal.retention.pages_in_use import measure_use
from whence_server.journal.schema import check_version
from whence_server.journal.sqlite_store import check_sqlite_version

# A running server waits for a step of this many pages; it takes some milliseconds.
_STEP_PAGES = 128
_STEPS_PER_CHECKPOINT = 32
_REST = 2.0
"""Pause after a step beside a server, as a multiple of its duration."""
_BUSY_MS = 10_000
_CHECKPOINT_MS = 200
"""Wait for readers beside a server, which waits for one second itself."""
_INCREMENTAL = 2


@dataclass(frozen=True, slots=True)
class CompactReport:
    """Result of a compaction; sizes in bytes, with the write-ahead log."""

    size_before: int
    size_after: int
    used_bytes: int
    is_complete: bool
    """False if another process reads the journal, so that the file keeps its size for now."""

    def describe(self) -> Iterator[str]:
        """Yield the lines for people."""
        yield (
            f"{spell_size(self.size_before)} before, {spell_size(self.size_after)} after, "
            f"{spell_size(self.used_bytes)} in use"
        )
        if not self.is_complete:
            yield (
                "another process reads the journal: the file shrinks to what is in use when that "
                "process lets go and the server writes again"
            )


def compact_journal(data_dir: Path) -> CompactReport:
    """Give the free pages of a journal back to the file system; a server may use the journal.

    Raises:
        ConfigurationError: there is no journal, a newer version wrote it, or it has to be rewritten
            and a server uses it or the disk has no space for that.
    """
    path = data_dir / "journal.db"
    if not path.is_file():
        raise ConfigurationError(f"{data_dir} holds no journal: it has no file journal.db")
    check_sqlite_version(apsw.sqlite_lib_version())
    try:
        with _lock(data_dir) as is_alone, _open(path) as connection:
            size_before = _measure_files(path)
            if connection.pragma("auto_vacuum") == _INCREMENTAL:
                _shrink(connection, rest=0.0 if is_alone else _REST)
            else:
                _rewrite(connection, path, is_alone)
            if not is_alone:
                # It keeps the server's writer out while it waits for readers.
                connection.set_busy_timeout(min(_BUSY_MS, _CHECKPOINT_MS))
            ((busy, _, _),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return CompactReport(
                size_before, _measure_files(path), measure_use(connection), not busy
            )
    except (apsw.Error, OSError) as error:
        raise ConfigurationError(f"{path} cannot be compacted: {error}") from error


@contextmanager
def _lock(data_dir: Path) -> Iterator[bool]:
    """Lock the directory; yield False if a server holds it, which may go on meanwhile."""
    try:
        lock = DirectoryLock(data_dir)
    except DirectoryInUseError:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(_BUSY_MS)
        connection.pragma("secure_delete", "ON")
        connection.pragma("temp_store", "MEMORY")
        check_version(connection)
        yield connection
    finally:
        connection.close()


def _shrink(connection: Any, rest: float) -> None:
    """Cut the free pages off, a few in each transaction."""
    num_steps, num_free = 0, connection.pragma("freelist_count")
    while num_free:
        started_s = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA incremental_vacuum({_STEP_PAGES})").fetchall()
        connection.execute("COMMIT")
        num_steps += 1
        if num_steps % _STEPS_PER_CHECKPOINT == 0:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        time.sleep(rest * (time.perf_counter() - started_s))
        num_free = connection.pragma("freelist_count")


def _rewrite(connection: Any, path: Path, is_alone: bool) -> None:
    """Write a database of an earlier version anew, so that it can give pages back from then on.

    Raises:
        ConfigurationError: a server uses the database, or the disk has no space.
    """
    if not is_alone:
        raise ConfigurationError(
            f"{path} was made by an earlier version, or copied by one, and cannot shrink while a "
            "server uses it: stop the server and run this command once; later ones need no stop"
        )
    # The new database is made in a temporary file; its pages are written to the write-ahead log,
    # and then into the file.
    needed, free = 3 * measure_use(connection), shutil.disk_usage(path.parent).free
    if free < needed:
        raise ConfigurationError(
            f"{path} has to be written anew, which needs {spell_size(needed)} of free space, and "
            f"the disk has {spell_size(free)}"
        )
    connection.pragma("auto_vacuum", "INCREMENTAL")
    with _use_temporary_files(connection, path.parent):
        connection.execute("VACUUM")


@contextmanager
def _use_temporary_files(connection: Any, directory: Path) -> Iterator[None]:
    """Let SQLite make temporary databases in a directory: they may be larger than the memory.

    Their files have no name, and the setting is the whole process's.
    """
    connection.pragma("temp_store", "FILE")
    connection.pragma("temp_store_directory", str(directory.absolute()))
    try:
        yield
    finally:
        connection.pragma("temp_store_directory", "")


def _measure_files(path: Path) -> int:
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())
