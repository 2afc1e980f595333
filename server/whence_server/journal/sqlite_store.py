"""The journal's tables in an SQLite database."""

import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ConfigurationError, JournalError
from whence_server.domain.retention import LabelPattern
from whence_server.journal import cursors, label_index, owner_index, sqlite_list, sqlite_lookup
from whence_server.journal.chain import ChainRow, Origin, digest_payload
from whence_server.journal.derive import EntryDigest
from whence_server.journal.label_index import make_label_rows
from whence_server.journal.listing import PageKey
from whence_server.journal.origin import read_origin, remove_entries
from whence_server.journal.retention import sqlite_queries
from whence_server.journal.retention.store import Candidate, RemovalLimits
from whence_server.journal.rows import Durability, GenerationRow, ListFilter
from whence_server.journal.schema import migrate
from whence_server.journal.sqlite_errors import translate_corruption, translate_transient_errors
from whence_server.journal.sqlite_rows import (
    INDEX_COLUMNS,
    bind_finish,
    bind_generation,
    make_entries_query,
    read_entries,
    read_own_entries,
)
from whence_server.journal.sqlite_state import load_state
from whence_server.journal.store import Batch, Owned, Page, State

_OLDEST_SQLITE = (3, 51, 3)
# Only a checkpoint waits, for a reader.
_BUSY_MS = 1_000
_MAX_LOG_BYTES = 64 << 20
_ALL_BYTES = 2**62
# Number of the writer: each database has one.
_WRITER = 1

_INSERT_GENERATION = f"""
    INSERT INTO generations (writer, started_position, secret, {INDEX_COLUMNS})
    VALUES ({_WRITER}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""  # noqa: S608  # constants only
_INSERT_ENTRY = f"INSERT INTO entries VALUES ({_WRITER}, ?, ?, ?, ?, ?, NULL, ?)"  # noqa: S608
_INSERT_DESTROYED = f"INSERT INTO entries VALUES ({_WRITER}, ?, ?, ?, ?, NULL, ?, ?)"  # noqa: S608
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
# The index over generations has kind and position at its end: AUDIT entries have generation 0.
READ_AUDIT = f"""
    SELECT position, x'', 0, kind, coalesce(payload, x'') FROM entries
    INDEXED BY entries_by_generation
    WHERE writer = {_WRITER} AND generation = 0 AND "offset" = 0
        AND kind = {EntryKind.AUDIT:d} AND position < ? ORDER BY position DESC LIMIT ?
"""  # noqa: S608  # constants only
_CHAIN = f"""
    SELECT position, generation, "offset", kind, payload, inner_digest, hash, secret
    FROM entries e LEFT JOIN generations g
        ON g.writer = e.writer AND g.started_position = e.generation
    WHERE e.writer = {_WRITER} AND position > ? ORDER BY position LIMIT ?
"""  # noqa: S608  # constants only


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


class SqliteStore:
    """One connection that writes, and one that reads for each reading thread.

    Attributes:
        writer_id: the log's UUID, 16 bytes, chosen when the database is created.
    """

    def __init__(self, path: Path, durability: Durability) -> None:
        """Open or create the database, and bring its schema up to date.

        Raises:
            ConfigurationError: the file is no journal or of a newer version, or SQLite is too old.
        """
        check_sqlite_version(apsw.sqlite_lib_version())
        self._path = str(path)
        self._local = threading.local()
        self._readers: list[Any] = []
        try:
            self._connection: Any = apsw.Connection(self._path)
            _prepare(self._connection, durability)
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
            self._write(batch)

    def _write(self, batch: Batch) -> None:
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT_GENERATION, map(bind_generation, batch.generations))
            for new in batch.generations:
                index = new.index
                rows = make_label_rows(index.generation_id, index.start_time_ns, index.labels)
                connection.executemany(label_index.INSERT, rows)
                if index.owner:
                    connection.execute(owner_index.INSERT, owner_index.bind_owner(index))
            connection.executemany(_INSERT_ENTRY, batch.entries)
            connection.executemany(_INSERT_OUTSIDE, batch.outside)
            connection.executemany(_FINISH, map(bind_finish, batch.finished))
            for generation_id, before in batch.deleted:
                self._destroy(generation_id, before)
            if batch.removed is not None:
                remove_entries(connection, batch.removed)
                cursors.move_to_origin(connection, batch.removed.position)
            cursors.advance(connection, batch.cursors)
            connection.execute("COMMIT")
        except BaseException:
            # After a full disk SQLite has already rolled back.
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
            return  # A damaged row must not make the whole batch fail.
        ((generation, secret),) = found
        rows = self._connection.execute(
            'SELECT position, "offset", kind, payload, hash '
            "FROM entries INDEXED BY entries_by_generation WHERE writer = ? "
            "AND generation = ? AND payload IS NOT NULL AND position < ? ORDER BY position",
            (_WRITER, generation, before),
        ).fetchall()
        # SQLite merges no pages whose rows shrink: an update would leave the file as large as it
        # is. Rows that go and come back are packed, in order.
        self._connection.executemany(
            "DELETE FROM entries WHERE writer = ? AND position = ?",
            ((_WRITER, position) for position, *_ in rows),
        )
        self._connection.executemany(
            _INSERT_DESTROYED,
            (
                (position, generation, offset, kind, digest_payload(kind, secret, payload), link)
                for position, offset, kind, payload, link in rows
            ),
        )
        self._connection.execute(_BURY, (generation_id,))
        self._connection.execute("DELETE FROM labels WHERE generation_id = ?", (generation_id,))
        self._connection.execute(owner_index.DELETE, (generation_id,))

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

    def load_state(self) -> State:
        """Read the state of the log."""
        with self._open_snapshot() as connection:
            return load_state(connection, self.writer_id)

    def find_generation(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""
        with self._open_snapshot() as connection:
            return sqlite_lookup.find_generation(connection, generation_id)

    def read_page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
    ) -> Page:
        """Return a page of generations, newest first, without deleted ones."""
        with self._open_snapshot() as connection:
            return sqlite_list.read_page(connection, list_filter, beyond, limit, max_bytes)

    def read_entry_digests(self, generation_id: str) -> tuple[int, list[EntryDigest]]:
        """Return the position of a generation's STARTED entry, and its entries' digests."""
        with self._open_snapshot() as connection:
            return sqlite_lookup.read_entry_digests(connection, generation_id)

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
            RecordDamagedError: its rows are damaged.
        """
        with self._open_snapshot() as connection:
            generation = sqlite_lookup.find_started_position(connection, generation_id)
            rows = connection.execute(
                make_entries_query(kinds), (_WRITER, generation, after_offset, limit)
            )
            return read_own_entries(generation_id, rows, max_bytes)

    def read_last(self, generation_id: str) -> Entry:
        """Return a generation's newest own entry.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are damaged.
        """
        with self._open_snapshot() as connection:
            return sqlite_lookup.read_last_entry(connection, generation_id)

    def read_all(self, after_position: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """Read entries of all kinds by position, up to either bound."""
        with self._open_snapshot() as connection:
            return read_entries(connection.execute(_READ_ALL, (after_position, limit)), max_bytes)

    def read_audit(self, before_position: int, limit: int) -> list[Entry]:
        """Read AUDIT entries before a position, the newest first."""
        with self._open_snapshot() as connection:
            rows = connection.execute(READ_AUDIT, (before_position, limit))
            return read_entries(rows, _ALL_BYTES)

    def measure_owner(self, owner: str) -> Owned:
        """Count the bytes of the entries of a caller's generations."""
        with self._open_snapshot() as connection:
            return owner_index.measure_owner(connection, owner)

    def read_chain(self, after_position: int, limit: int) -> list[ChainRow]:
        """Read entries with everything that their hashes cover."""
        return [ChainRow(*row) for row in self._read_rows(_CHAIN, (after_position, limit))]

    def read_origin(self) -> Origin | None:
        """Return the place at which the log begins; None if no entry was removed."""
        with self._open_snapshot() as connection:
            return read_origin(connection)

    # ---- retention, in any thread ----

    def read_candidates(
        self, pattern: LabelPattern | None, before_ns: int, beyond: PageKey | None, limit: int
    ) -> list[Candidate]:
        """Read generations that retention may delete, as `RetentionStore` says."""
        with self._open_snapshot() as connection:
            return sqlite_queries.read_candidates(connection, pattern, before_ns, beyond, limit)

    def agrees_with_entries(self, candidate: Candidate) -> bool:
        """Return whether a candidate's columns are those of its entries."""
        with self._open_snapshot() as connection:
            return sqlite_queries.agrees_with_entries(connection, candidate)

    def find_newest_start(self) -> int | None:
        """Return the newest start time of a generation, in Unix nanoseconds; None without one."""
        with self._open_snapshot() as connection:
            return sqlite_queries.find_newest_start(connection)

    def count_matching(self, patterns: tuple[LabelPattern, ...]) -> int:
        """Return the number of generations that match a pattern."""
        with self._open_snapshot() as connection:
            return sqlite_queries.count_matching(connection, patterns)

    def measure_use(self) -> int:
        """Return the size of the pages in use, in bytes."""
        with self._open_snapshot() as connection:
            return sqlite_queries.measure_use(connection)

    def find_removable(self, limits: RemovalLimits) -> Origin | None:
        """Return the last of the oldest entries that can be removed, as `RetentionStore` says."""
        with self._open_snapshot() as connection:
            return sqlite_queries.find_removable(connection, limits)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._readers:
            connection.close()
        self._connection.close()

    def _read_rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
        with translate_corruption():
            rows: list[Any] = self._get_reader().execute(sql, bindings).fetchall()
        return rows

    @contextmanager
    def _open_snapshot(self) -> Iterator[Any]:
        """Yield a connection whose statements see one state of the database."""
        connection = self._get_reader()
        with translate_corruption(), connection:
            yield connection

    def _get_reader(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(_BUSY_MS)
            self._local.connection = connection
            self._readers.append(connection)
        return connection


def _prepare(connection: Any, durability: Durability) -> None:
    connection.set_busy_timeout(_BUSY_MS)
    # Only a new database follows this: its free pages can be given back while a server runs.
    connection.pragma("auto_vacuum", "INCREMENTAL")
    connection.pragma("journal_mode", "wal")
    connection.pragma("synchronous", "FULL" if durability is Durability.STRICT else "NORMAL")
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
