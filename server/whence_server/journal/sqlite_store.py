"""The journal's tables in an SQLite database in the data directory."""

import threading
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ConfigurationError, GenerationNotFoundError
from whence_server.journal import listing
from whence_server.journal.chain import ChainRow, genesis, inner_digest
from whence_server.journal.listing import PageKey
from whence_server.journal.rows import Durability, GenerationRow, ListFilter
from whence_server.journal.schema import migrate
from whence_server.journal.sqlite_rows import (
    INDEX_COLUMNS,
    ROW_COLUMNS,
    finish_bindings,
    generation_bindings,
    index_of,
    offset_condition,
    read_entries,
    row_of,
)
from whence_server.journal.store import Batch, State, Unfinished

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
        num_generated_tokens = 0, text_preview = '', deleted = 1
    WHERE generation_id = ?
"""
_ADVANCE = """
    INSERT INTO cursors VALUES (?, ?) ON CONFLICT DO UPDATE SET position = excluded.position
"""
_UNFINISHED = f"""
    SELECT started_position, secret,
        (SELECT max("offset") FROM entries e
         WHERE e.writer = g.writer AND e.generation = g.started_position),
        {INDEX_COLUMNS}
    FROM generations g WHERE writer = {_WRITER} AND finish_reason IS NULL
    ORDER BY started_position
"""  # noqa: S608  # constants only
_READ_ALL = f"""
    SELECT position, coalesce(generation_id, ''), "offset", kind, coalesce(payload, x'')
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
    """Refuses a library with the WAL-reset bug, which can corrupt a database.

    Raises:
        ConfigurationError: it is older than 3.51.3.
    """
    if tuple(int(part) for part in version.split(".")[:3]) < _OLDEST_SQLITE:
        raise ConfigurationError(
            f"SQLite {version} can corrupt a database that several connections use; "
            "install apsw 3.51.3 or newer"
        )


_UNCALLED = """
SELECT generation_id FROM generations AS g
WHERE g.writer = ? AND g.deleted = 0 AND NOT EXISTS (
    SELECT 1 FROM entries AS e
    WHERE e.writer = g.writer AND e.generation = g.started_position
        AND e."offset" = 0 AND e.kind = ?
)
"""


class SqliteStore:
    """One connection that writes, and one that reads for every thread that asks.

    Attributes:
        writer_id: the log's UUID, 16 bytes; made when the database is.
    """

    def __init__(self, path: Path, durability: Durability) -> None:
        """Opens or creates the database, and brings its schema up to date.

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
        except apsw.Error as error:
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
        """Commits a batch, durably as the store was opened for."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            connection.executemany(_INSERT_GENERATION, map(generation_bindings, batch.generations))
            connection.executemany(_INSERT_ENTRY, batch.entries)
            connection.executemany(_INSERT_OUTSIDE, batch.outside)
            connection.executemany(_FINISH, map(finish_bindings, batch.finished))
            for generation_id in batch.deleted:
                self._destroy(generation_id)
            connection.executemany(_ADVANCE, batch.cursors.items())
            connection.execute("COMMIT")
        except BaseException:
            # A full disk has rolled back already.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _destroy(self, generation_id: str) -> None:
        ((generation, secret),) = self._connection.execute(
            "SELECT started_position, secret FROM generations WHERE generation_id = ?",
            (generation_id,),
        )
        rows = self._connection.execute(
            "SELECT position, kind, payload FROM entries "
            "WHERE writer = ? AND generation = ? AND payload IS NOT NULL AND kind <> ?",
            (_WRITER, generation, EntryKind.DELETED),
        ).fetchall()
        self._connection.executemany(
            "UPDATE entries SET payload = NULL, inner_digest = ? WHERE writer = ? AND position = ?",
            (
                (
                    inner_digest(b"" if kind == EntryKind.CALL else secret, payload),
                    _WRITER,
                    position,
                )
                for position, kind, payload in rows
            ),
        )
        self._connection.execute(_BURY, (generation_id,))

    def truncate_log(self) -> bool:
        """Clears deleted content out of the write-ahead log; False while a reader holds it."""
        ((busy, _, _),) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return not busy

    # ---- any thread ----

    def state(self) -> State:
        """Where the log stands."""
        last = self._rows(
            "SELECT position, hash FROM entries WHERE writer = ? ORDER BY position DESC LIMIT 1",
            (_WRITER,),
        )
        position, last_hash = last[0] if last else (0, genesis(self.writer_id))
        unfinished = [
            Unfinished(started, secret, last_offset, index_of(row))
            for started, secret, last_offset, *row in self._rows(_UNFINISHED)
        ]
        cursors = dict(self._rows("SELECT name, position FROM cursors"))
        uncalled = [row[0] for row in self._rows(_UNCALLED, (_WRITER, EntryKind.CALL))]
        return State(self.writer_id, position, last_hash, unfinished, uncalled, cursors)

    def generation(self, generation_id: str) -> GenerationRow | None:
        """One generation's row, or a deleted one's tombstone. A probe of one index."""
        rows = self._rows(
            f"SELECT {ROW_COLUMNS} FROM generations WHERE generation_id = ?",  # noqa: S608
            (generation_id,),
        )
        return row_of(rows[0]) if rows else None

    def page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int
    ) -> list[GenerationRow]:
        """Generations newest first, deleted ones left out."""
        condition, bindings = listing.where(list_filter, beyond)
        rows = self._rows(
            f"SELECT {ROW_COLUMNS} FROM generations WHERE {condition} "  # noqa: S608
            "ORDER BY start_time_ns DESC, generation_id DESC LIMIT ?",
            (*bindings, limit),
        )
        return [row_of(row) for row in rows]

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
        """
        with self._snapshot() as connection:
            generation = _started_position(connection, generation_id)
            rows = connection.execute(
                f'SELECT position, ?, "offset", kind, payload FROM entries '  # noqa: S608
                f"WHERE writer = ? AND generation = ? AND {offset_condition(kinds)} "
                'ORDER BY "offset", position LIMIT ?',
                (generation_id, _WRITER, generation, after_offset, limit),
            )
            return read_entries(rows, max_bytes)

    def last(self, generation_id: str) -> Entry:
        """A generation's newest own entry.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        with self._snapshot() as connection:
            generation = _started_position(connection, generation_id)
            ((position, offset, kind, payload),) = connection.execute(
                'SELECT position, "offset", kind, payload FROM entries '
                'WHERE writer = ? AND generation = ? ORDER BY "offset" DESC LIMIT 1',
                (_WRITER, generation),
            )
            return Entry(position, generation_id, offset, EntryKind(kind), payload)

    def read_all(self, after_position: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """Entries of all kinds in order of position; bounded as `read` is."""
        with self._snapshot() as connection:
            return read_entries(connection.execute(_READ_ALL, (after_position, limit)), max_bytes)

    def chain(self, after_position: int, limit: int) -> list[ChainRow]:
        """Entries with all that their hashes are made from."""
        return [ChainRow(*row) for row in self._rows(_CHAIN, (after_position, limit))]

    def close(self) -> None:
        """Closes every connection."""
        for connection in self._readers:
            connection.close()
        self._connection.close()

    def _rows(self, sql: str, bindings: tuple[Any, ...] = ()) -> list[Any]:
        rows: list[Any] = self._reader().execute(sql, bindings).fetchall()
        return rows

    @contextmanager
    def _snapshot(self) -> Iterator[Any]:
        """Several statements that see one state of the database."""
        connection = self._reader()
        with connection:
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


def _started_position(connection: Any, generation_id: str) -> int:
    found = connection.execute(
        "SELECT started_position, deleted FROM generations WHERE generation_id = ?",
        (generation_id,),
    ).fetchall()
    if not found or found[0][1]:
        raise GenerationNotFoundError(generation_id, deleted=bool(found))
    started_position: int = found[0][0]
    return started_position
