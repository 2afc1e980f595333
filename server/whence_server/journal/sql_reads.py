"""Reading methods of a store, in SQL of both databases."""

from collections.abc import Callable, Collection
from typing import Any, Concatenate, ParamSpec, TypeVar

from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal import sql_list, sql_lookup
from whence_server.journal.chain import ChainRow, Origin
from whence_server.journal.derive import EntryDigest
from whence_server.journal.listing import PageKey
from whence_server.journal.origin import read_origin
from whence_server.journal.owner_index import measure_owner
from whence_server.journal.rows import GenerationRow, ListFilter
from whence_server.journal.sealing.sealed_logs import has_sealed, read_journal_id
from whence_server.journal.sql_rows import make_entries_query, read_entries, read_own_entries
from whence_server.journal.sql_state import load_state
from whence_server.journal.store import LogEnd, Owned, Page, State

P = ParamSpec("P")
T = TypeVar("T")
_ALL_BYTES = 2**62
_FINISHED_BYTES = 8 << 20

_READ_ALL = """
    SELECT position, CAST(coalesce(generation_id, '') AS BLOB), "offset", kind,
        coalesce(payload, x'')
    FROM entries e LEFT JOIN generations g
        ON g.writer = e.writer AND g.started_position = e.generation
    WHERE e.writer = ? AND position > ? ORDER BY position LIMIT ?
"""
_READ_FINISHED = f"""
    SELECT position, CAST(coalesce(generation_id, '') AS BLOB), "offset", kind,
        coalesce(payload, x'')
    FROM entries e LEFT JOIN generations g
        ON g.writer = e.writer AND g.started_position = e.generation
    WHERE e.writer = ? AND position > ? AND position <= ? AND kind = {EntryKind.FINISHED:d}
    ORDER BY position LIMIT ?
"""  # noqa: S608  # constants only
# The index over generations has kind and position at its end: AUDIT entries have generation 0.
READ_AUDIT = f"""
    SELECT position, x'', 0, kind, coalesce(payload, x'') FROM entries
    INDEXED BY entries_by_generation
    WHERE writer = ? AND generation = 0 AND "offset" = 0
        AND kind = {EntryKind.AUDIT:d} AND position < ? ORDER BY position DESC LIMIT ?
"""  # noqa: S608  # constants only
LOGS = """
    SELECT w.writer, w.writer_id,
        coalesce((SELECT max(position) FROM entries e WHERE e.writer = w.writer), 0)
    FROM writers w ORDER BY w.writer
"""
"""Logs with the positions of their newest entries."""
CHAIN = """
    SELECT position, generation, "offset", kind, payload, inner_digest, hash, secret
    FROM entries e LEFT JOIN generations g
        ON g.writer = e.writer AND g.started_position = e.generation
    WHERE e.writer = ? AND position > ? ORDER BY position LIMIT ?
"""
"""Entries of a writer after a position with everything that their hashes cover."""


class SqlReads:
    """Reading half of a store; any thread may call its methods.

    Attributes:
        writer: number of the log's writer.
        writer_id: the log's UUID, 16 bytes.
    """

    writer: int
    writer_id: bytes

    def _read(
        self, function: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function with a connection whose statements see one state of the database."""
        raise NotImplementedError

    def load_state(self) -> State:
        """Read the state of the log."""
        return self._read(load_state, self.writer, self.writer_id)

    def find_generation(self, generation_id: str) -> GenerationRow | None:
        """Return a generation's row, deleted or not; None if the id is unknown."""
        return self._read(sql_lookup.find_generation, generation_id)

    def has_sealed(self) -> bool:
        """Return whether the newest generation of a log of the database is encrypted."""
        return self._read(has_sealed)

    def read_journal_id(self) -> bytes:
        """Return the id of the database's first log, by which its keys name the journal."""
        return self._read(read_journal_id)

    def read_page(
        self, list_filter: ListFilter, beyond: PageKey | None, limit: int, max_bytes: int
    ) -> Page:
        """Return a page of generations, newest first, without deleted ones."""
        return self._read(sql_list.read_page, list_filter, beyond, limit, max_bytes)

    def find_ended(self, generation_id: str) -> tuple[int, bytes]:
        """Return a generation's position and secret, as `Store.find_ended`."""
        return self._read(sql_lookup.find_ended, generation_id, self.writer)

    def read_entry_digests(self, generation_id: str) -> tuple[int, list[EntryDigest]]:
        """Return the position of a generation's STARTED entry, and its entries' digests.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            GenerationInOtherLogError: it is not in this log.
            RecordDamagedError: its row points to another generation's entries.
        """
        return self._read(sql_lookup.read_entry_digests, generation_id, self.writer)

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
        return self._read(
            _read_own, generation_id, after_offset, kinds, limit=limit, max_bytes=max_bytes
        )

    def read_last(self, generation_id: str) -> Entry:
        """Return a generation's newest own entry.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
            RecordDamagedError: its rows are damaged.
        """
        return self._read(sql_lookup.read_last_entry, generation_id)

    def read_all(self, after_position: int, *, limit: int, max_bytes: int) -> list[Entry]:
        """Read entries of all kinds of the log by position, up to either bound."""
        return self._read(read_log, self.writer, after_position, limit, max_bytes)

    def list_logs(self) -> list[LogEnd]:
        """Return every log of the database with the position of its newest committed entry."""
        return self._read(_list_logs)

    def read_audit(self, writer: int, before_position: int, limit: int) -> list[Entry]:
        """Read AUDIT entries of a writer's log before a position, the newest first."""
        return self._read(_read_audit, writer, before_position, limit)

    def read_finished(self, after_position: int, up_to_position: int, limit: int) -> list[Entry]:
        """Read FINISHED entries by position, up to the limit or 8 MiB; at least one if any."""
        return self._read(_read_finished, self.writer, after_position, up_to_position, limit)

    def read_tree(self, read: Callable[[Any], T]) -> T:
        """Call a function with a connection whose statements see one state of the database."""
        return self._read(read)

    def measure_owner(self, owner: str) -> Owned:
        """Count the bytes of the entries of a caller's generations."""
        return self._read(measure_owner, owner)

    def read_origin(self) -> Origin | None:
        """Return the place at which the log begins; None if no entry was removed."""
        return self._read(read_origin, self.writer)

    def read_chain(self, after_position: int, limit: int) -> list[ChainRow]:
        """Read entries of the log with everything that their hashes cover."""
        return self._read(_read_chain, self.writer, after_position, limit)


def _read_own(
    connection: Any,
    generation_id: str,
    after_offset: int,
    kinds: Collection[EntryKind] | None,
    *,
    limit: int,
    max_bytes: int,
) -> list[Entry]:
    place = sql_lookup.find_place(connection, generation_id)
    rows = connection.execute(make_entries_query(kinds), (*place, after_offset, limit))
    return read_own_entries(generation_id, rows, max_bytes)


def read_log(
    connection: Any, writer: int, after_position: int, limit: int, max_bytes: int
) -> list[Entry]:
    """Read entries of all kinds of a writer's log by position, up to either bound."""
    return read_entries(connection.execute(_READ_ALL, (writer, after_position, limit)), max_bytes)


def _list_logs(connection: Any) -> list[LogEnd]:
    return [LogEnd(*row) for row in connection.execute(LOGS).fetchall()]


def _read_audit(connection: Any, writer: int, before_position: int, limit: int) -> list[Entry]:
    rows = connection.execute(READ_AUDIT, (writer, before_position, limit))
    return read_entries(rows, _ALL_BYTES)


def _read_finished(
    connection: Any, writer: int, after_position: int, up_to_position: int, limit: int
) -> list[Entry]:
    bindings = (writer, after_position, up_to_position, limit)
    return read_entries(connection.execute(_READ_FINISHED, bindings), _FINISHED_BYTES)


def _read_chain(connection: Any, writer: int, after_position: int, limit: int) -> list[ChainRow]:
    rows = connection.execute(CHAIN, (writer, after_position, limit)).fetchall()
    return [ChainRow(*row) for row in rows]
