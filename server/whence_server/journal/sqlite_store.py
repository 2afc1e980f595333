"""The journal's tables in an SQLite database in the data directory."""

import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ConfigurationError, JournalError
from whence_server.journal import cursors, label_index, sqlite_list, sqlite_lookup
from whence_server.journal.chain import ChainRow, inner_digest
from whence_server.journal.derive import SpineEntry
from whence_server.journal.label_index import label_rows
from whence_server.journal.listing import PageKey
from whence_server.journal.rows import Durability, GenerationRow, ListFilter
from whence_server.journal.schema import migrate
from whence_server.journal.sqlite_errors import passing_faults, readable
from whence_server.journal.sqlite_rows import (
    INDEX_COLUMNS,
    finish_bindings,
    generation_bindings,
    offset_condition,
    own_entries,
    read_entries,
)
from whence_server.journal.sqlite_state import state_of
from whence_server.journal.store import Batch, Page, State

_OLDEST_SQLITE = (3, 51, 3)
# The only thing to wait for is a checkpoint's wait for a reader.
_BUSY_MS = 1_000
_MAX_LOG_BYTES = 64 << 20
# One file, one writer: the number tells servers apart where several share a database.
_WRITER = 1

_INSERT_GENERATION = f"""
    INSERT INTO generations (writer, started_position, secret, {INDEX_COLUMNS})
    VALUES ({_WRITER}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608  # constants only
_INSERT_ENTRY = f"INSERT INTO entries VALUES ({_WRITER}, ?, ?, ?, ?, ?, NULL, ?)"  # noqa: S608
_INSERT_OUTSIDE = f"""
    INSERT INTO entries VALUES (
        {_WRITER}, ?,
        coalesce((SELECT started_position FROM generations WHERE generation_id = ?), 0),
        0, ?, ?, NULL, ?
    )
"""  # noqa: S608  # constants only
_FINISH = """
    UPDATE generations SET finish_reason = ?, num_generated_tokens = ?, text_preview = ?
    WHERE generation_id = ?
"""
_BURY = """
    UPDATE generations SET secret = NULL, trace_id = '', model = '', start_time_ns = 0,
        request_digest = '', labels = '{}', prompt_preview = '', num_prompt_tokens = 0,
        finish_reason = 0, num_generated_tokens = 0, text_preview = '', deleted = 1
    WHERE generation_id = ?
"""
_READ_ALL = f"""
    SELECT position, CAST(coalesce(generation_id, '') AS BLOB), "offset", kind,
        coalesce(payload, x'')
    FROM entries e LEFT JOIN generations g
        ON g.writer = e.writer AND g.started_position = e.generation
    WHERE e.writer = {_WRITER} AND position > ? ORDER BY position LIMIT ?
"""  # noqa: S608  # constants only
_CHAIN = f"""
    SELECT position, generation, "offset", kind, payload, inner_digest, hash, secret
    FROM entries e LEFT JOIN generations g
        ON g.writer = e.writer AND g.started_position = e.generation
    WHERE e.writer = {_WRITER} AND position > ? ORDER BY position LIMIT ?
"""  # noqa: S608  # constants only


def check_sqlite_version(version: str) -> None:
    """Refuse a library with the WAL-reset bug, which can corrupt a database.

    Raises:
        ConfigurationError: it is older than 3.51.3.
    """
    if tuple(int(part) for part in version.split(".")[:3]) < _OLDEST_SQLITE:
        raise ConfigurationError(
            f"SQLite {version} can corrupt a database that several connections use; "
            "install apsw 3.51.3 or newer"
        )


class SqliteStore:
    """One connection that writes, and one that reads for every thread that asks.

    Attributes:
        writer_id: the log's UUID, 16 bytes; made when the database is.
    """

    def __init__(self, path: Path, durability: Durability) -> None:
        """Open or creates the database, and brings its schema up to date.

        Raises:
            ConfigurationError: the file is no journal, or a newer version's; or SQLite is too old.
        """
        check_sqlite_version(apsw.sqlite_lib_version())
        self._path = str(path)
        self._local = threading.local()
        self._readers: list[Any] = []
        try:
            self._connection: Any = apsw.Connection(self._path)
            _prepare(self._connection, durability)
            migrate(self._connection)
            self.writer_id = _writer_id(self._connection)
            # A crash between a deletion and its checkpoint leaves the content in the log.
            self.truncate_log()
        except (apsw.Error, JournalError) as error:
            raise ConfigurationError(f"{path} cannot be opened as a journal: {error}") from error

    @property
    def size_bytes(self) -> int:
        """The database and its write-ahead log; 0 for what is not there."""
        total = 0
        for path in (self._path, f"{self._path}-wal"):
            with suppress(FileNotFoundError):
                total += Path(path).stat().st_size
        return total

    # ---- the writer's thread ----

    def write(self, batch: Batch) -> None:
        """Commit a batch, durably as the store was opened for.

        Raises:
            JournalUnwritableError: the disk is full or out of order; the batch may be tried again.
        """
        with passing_faults():
            self._write(batch)

    def _write(self, batch: Batch) -> None:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT_GENERATION, map(generation_bindings, batch.generations))
            for new in batch.generations:
                index = new.index
                rows = label_rows(index.generation_id, index.start_time_ns, index.labels)
                connection.executemany(label_index.INSERT, rows)
            connection.executemany(_INSERT_ENTRY, batch.entries)
            connection.executemany(_INSERT_OUTSIDE, batch.outside)
            connection.executemany(_FINISH, map(finish_bindings, batch.finished))
            for generation_id, before in batch.deleted:
                self._destroy(generation_id, before)
            cursors.advance(connection, batch.cursors)
            connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back already.
            if connection.in_transaction:
                with suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            raise

    def _destroy(self, generation_id: str, before: int) -> None:
        found = self._connection.execute(
            "SELECT started_position, secret FROM generations WHERE generation_id = ?",
            (generation_id,),
        ).fetchall()
        if not found:
            return  # A damaged row must not cost the whole batch.
        ((generation, secret),) = found
        rows = self._connection.execute(
            "SELECT position, kind, payload FROM entries "
            "WHERE writer = ? AND generation = ? AND payload IS NOT NULL AND position < ?",
            (_WRITER, generation, before),
        ).fetchall()
        self._connection.executemany(
            "UPDATE entries SET payload = NULL, inner_digest = ? WHERE writer = ? AND position = ?",
            (
                (
                    inner_digest(b"" if kind == EntryKind.CALL else secret or b"", payload),
                    _WRITER,
                    position,
                )
                for position, kind, payload in rows
            ),
        )
        self._connection.execute(_BURY, (generation_id,))
        self._connection.execute("DELETE FROM labels WHERE generation_id = ?", (generation_id,))

    def truncate_log(self) -> bool:
        """Clear deleted content out of the write-ahead log; False while a reader holds it.

        Raises:
            JournalUnwritableError: the disk is full or out of order.
        """
        with passing_faults():
            ((busy, _, _),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return not busy

    def rebuild(self, rebuild: Callable[[Any], int]) -> int:
        """Call a function with the write connection, in one transaction.

        Raises:
            JournalUnwritableError: the disk is full or out of order; nothing is changed.
        """
        with passing_faults(), self._connection:
            return rebuild(self._connection)

    # ---- any thread ----

    def state(self) -> State:
        """Where the log stands."""
        with self._snapshot() as connection:
            return state_of(connection, self.writer_id)

    def generation(self, generation_id: str) -> GenerationRow | None:
        """One generation's row, or a deleted one's tombstone. A probe of one index."""
        with self._snapshot() as connection:
            return sqlite_lookup.generation(connection, generation_id)

    def page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
    ) -> Page:
        """Generations newest first, deleted ones left out."""
        with self._snapshot() as connection:
            return sqlite_list.page(connection, list_filter, beyond, limit, max_bytes)

    def spine(self, generation_id: str) -> tuple[int, list[SpineEntry]]:
        """Position of a generation's STARTED, and what deletion leaves of its entries."""
        with self._snapshot() as connection:
            return sqlite_lookup.spine(connection, generation_id)

    def read(
        self,
        generation_id: str,
        after_offset: int,
        *,
        limit: int,
        max_bytes: int,
        kinds: Collection[EntryKind] | None = None,
    ) -> list[Entry]:
        """A generation's own entries; stops at either bound, gives at least one if there is one.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are not as they were written.
        """
        with self._snapshot() as connection:
            generation = sqlite_lookup.started_position(connection, generation_id)
            rows = connection.execute(
                'SELECT position, "offset", kind, payload FROM entries '  # noqa: S608
                f"WHERE writer = ? AND generation = ? AND {offset_condition(kinds)} "
                'ORDER BY "offset", position LIMIT ?',
                (_WRITER, generation, after_offset, limit),
            )
            return own_entries(generation_id, rows, max_bytes)

    def last(self, generation_id: str) -> Entry:
        """A generation's newest own entry.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are not as they were written.
        """
        with self._snapshot() as connection:
            return sqlite_lookup.last_entry(connection, generation_id)

    def read_all(self, after_position: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """Entries of all kinds in order of position; bounded as `read` is."""
        with self._snapshot() as connection:
            return read_entries(connection.execute(_READ_ALL, (after_position, limit)), max_bytes)

    def chain(self, after_position: int, limit: int) -> list[ChainRow]:
        """Entries with all that their hashes are made from."""
        return [ChainRow(*row) for row in self._rows(_CHAIN, (after_position, limit))]

    def close(self) -> None:
        """Close every connection."""
        for connection in self._readers:
            connection.close()
        self._connection.close()

    def _rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
        with readable():
            rows: list[Any] = self._reader().execute(sql, bindings).fetchall()
        return rows

    @contextmanager
    def _snapshot(self) -> Iterator[Any]:
        """Several statements that see one state of the database."""
        connection = self._reader()
        with readable(), connection:
            yield connection

    def _reader(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(_BUSY_MS)
            self._local.connection = connection
            self._readers.append(connection)
        return connection


def _prepare(connection: Any, durability: Durability) -> None:
    connection.set_busy_timeout(_BUSY_MS)
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "FULL" if durability is Durability.STRICT else "NORMAL")
    connection.pragma("secure_delete", "ON")
    connection.pragma("temp_store", "MEMORY")
    connection.pragma("journal_size_limit", _MAX_LOG_BYTES)


def _writer_id(connection: Any) -> bytes:
    with connection:
        connection.execute(
            "INSERT OR IGNORE INTO writers VALUES (?, ?)", (_WRITER, uuid.uuid4().bytes)
        )
    writer_id: bytes = connection.execute(
        "SELECT writer_id FROM writers WHERE writer = ?", (_WRITER,)
    ).get
    return writer_id
