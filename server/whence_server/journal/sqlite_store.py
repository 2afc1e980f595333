"""The journal's tables in an SQLite database."""

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw

from whence_server.domain.errors import ConfigurationError, GenerationExistsError, JournalError
from whence_server.journal.retention.pages_in_use import measure_use
from whence_server.journal.retention.sql_retention import SqlRetention
from whence_server.journal.rows import Durability
from whence_server.journal.schema import migrate
from whence_server.journal.sql_reads import SqlReads
from whence_server.journal.sql_writes import write_batch
from whence_server.journal.sqlite_errors import translate_corruption, translate_transient_errors
from whence_server.journal.store import Batch, NewEntry

P = ParamSpec("P")
T = TypeVar("T")

_OLDEST_SQLITE = (3, 51, 3)
# Only a checkpoint waits, for a reader.
_BUSY_MS = 1_000
_MAX_LOG_BYTES = 64 << 20
_LONG_LOG_PAGES = 1_000
# Number of the writer: each database has one.
_WRITER = 1

_INSERT_ENTRY = f"INSERT INTO entries VALUES ({_WRITER}, ?, ?, ?, ?, ?, NULL, ?)"  # noqa: S608


def check_sqlite_version(version: str) -> None:
    """Refuse a version of SQLite with the WAL-reset bug, which can corrupt a database.

    Raises:
        ConfigurationError: the version is older than 3.51.3.
    """
    if tuple(int(part) for part in version.split(".")[:3]) < _OLDEST_SQLITE:
        raise ConfigurationError(
            f"SQLite {version} can corrupt a database that several connections use; "
            "install apsw 3.51.3 or newer"
        )


class SqliteStore(SqlReads, SqlRetention):
    """One connection that writes, and one that reads for each reading thread."""

    writer = _WRITER

    def __init__(self, path: Path, durability: Durability) -> None:
        """Open or create the database, and bring its schema up to date.

        Raises:
            ConfigurationError: the file is no journal or of a newer version, or SQLite is too old.
        """
        check_sqlite_version(apsw.sqlite_lib_version())
        self._path = str(path)
        self._local = threading.local()
        self._readers: list[Any] = []
        self._synchronous = "FULL" if durability is Durability.STRICT else "NORMAL"
        try:
            self._connection: Any = apsw.Connection(self._path)
            _prepare(self._connection, self._synchronous)
            self._num_log_pages = 0
            self._connection.set_wal_hook(self._note_log)
            migrate(self._connection)
            self.writer_id = _load_writer_id(self._connection)
            # A crash between a deletion and its checkpoint leaves the content in the log.
            self.truncate_log()
        except (apsw.Error, JournalError) as error:
            raise ConfigurationError(f"{path} cannot be opened as a journal: {error}") from error

    @property
    def size_bytes(self) -> int:
        """Size of the database and its write-ahead log; a missing file counts as 0."""
        total = 0
        for path in (self._path, f"{self._path}-wal"):
            with suppress(FileNotFoundError):
                total += Path(path).stat().st_size
        return total

    # ---- the writer's thread ----

    def write(self, batch: Batch) -> None:
        """Commit a batch with the durability of the store.

        Raises:
            JournalUnwritableError: the disk is full or failing; the batch may be tried again.
        """
        with translate_transient_errors():
            self._shorten_log()
            self._write(batch)

    def _note_log(self, _connection: Any, _database: str, num_pages: int) -> int:
        self._num_log_pages = num_pages
        return apsw.SQLITE_OK

    def _shorten_log(self) -> None:
        """Copy a long write-ahead log into the database.

        SQLite does it by itself after a commit, and tells nobody that it failed: a disk whose fsync
        fails would go unnoticed.
        """
        if self._num_log_pages >= _LONG_LOG_PAGES:
            with suppress(apsw.BusyError):  # somebody else is copying it
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _write(self, batch: Batch) -> None:
        if not batch.deleted:
            self._commit(batch)
            return
        # The keys of encrypted generations are destroyed next: the entries that say so must be on
        # disk before, whoever reads the log and blocks its checkpoint.
        with self._reach_disk():
            self._commit(batch)

    def change_tree(self, change: Callable[[Any], T]) -> T:
        """Call a function with the write connection, in one transaction, as `Store` says."""
        with translate_transient_errors():
            self._shorten_log()
            with self._reach_disk(), self._connection:
                return change(self._connection)

    @contextmanager
    def _reach_disk(self) -> Iterator[None]:
        """Have the transactions within a block, and all before, on disk at its end."""
        self._connection.pragma("synchronous", "FULL")
        try:
            yield
        finally:
            with suppress(apsw.Error):
                self._connection.pragma("synchronous", self._synchronous)

    def _commit(self, batch: Batch) -> None:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            write_batch(connection, _WRITER, batch, self._insert_entries)
            connection.execute("COMMIT")
        except BaseException:
            # After a full disk SQLite has already rolled back.
            if connection.in_transaction:
                with suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            raise

    def _insert_entries(self, entries: Iterable[NewEntry]) -> None:
        self._connection.executemany(_INSERT_ENTRY, entries)

    def truncate_log(self) -> bool:
        """Remove deleted content from the write-ahead log; return False if a reader holds it.

        Raises:
            JournalUnwritableError: the disk is full or failing.
        """
        with translate_transient_errors():
            ((busy, _, _),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return not busy

    def rebuild(self, rebuild: Callable[[Any], int]) -> int:
        """Call a function with the write connection, in one transaction.

        Raises:
            JournalUnwritableError: the disk is full or failing; nothing is changed.
        """
        with translate_transient_errors(), self._connection:
            return rebuild(self._connection)

    # ---- any thread ----

    def take_id(self, generation_id: str) -> None:
        """Raise if an id was used before.

        Raises:
            GenerationExistsError: it was.
        """
        if (row := self.find_generation(generation_id)) is not None:
            raise GenerationExistsError(generation_id, deleted=row.deleted)

    def measure_use(self) -> int:
        """Return the size of the pages in use, in bytes."""
        return self._read(measure_use)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._readers:
            connection.close()
        self._connection.close()

    def _read(
        self, function: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        connection = self._get_reader()
        with translate_corruption(), connection:
            return function(connection, *args, **kwargs)

    def _get_reader(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(_BUSY_MS)
            self._local.connection = connection
            self._readers.append(connection)
        return connection


def _prepare(connection: Any, synchronous: str) -> None:
    connection.set_busy_timeout(_BUSY_MS)
    # Only a new database follows this: its free pages can be given back while a server runs.
    connection.pragma("auto_vacuum", "INCREMENTAL")
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", synchronous)
    connection.pragma("secure_delete", "ON")
    connection.pragma("temp_store", "MEMORY")
    connection.pragma("journal_size_limit", _MAX_LOG_BYTES)


def _load_writer_id(connection: Any) -> bytes:
    with connection:
        connection.execute(
            "INSERT OR IGNORE INTO writers VALUES (?, ?)", (_WRITER, uuid.uuid4().bytes)
        )
    writer_id: bytes = connection.execute(
        "SELECT writer_id FROM writers WHERE writer = ?", (_WRITER,)
    ).get
    return writer_id
