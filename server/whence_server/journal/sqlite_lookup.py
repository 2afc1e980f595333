"""One generation's row and entries out of SQLite; what a row cannot say, its entries do."""

import dataclasses
import logging
from typing import Any

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationNotFoundError, RecordDamagedError
from whence_server.journal.chain import inner_digest
from whence_server.journal.derive import (
    PEEK_BYTES,
    SpineEntry,
    index_of_finished,
    index_of_started,
    peek_generation_id,
)
from whence_server.journal.rows import GenerationRow
from whence_server.journal.sqlite_rows import KINDS, ROW_COLUMNS, parsed_row

_log = logging.getLogger(__name__)

_WRITER = 1
_MAX_LOGGED = 1_000
_logged: set[str] = set()


def generation(connection: Any, generation_id: str) -> GenerationRow | None:
    """One generation's row, or a deleted one's tombstone; None where it is not known."""
    found = connection.execute(
        f"SELECT {ROW_COLUMNS} FROM generations g WHERE g.generation_id = ?",  # noqa: S608
        (generation_id,),
    ).fetchall()
    return rows_of(connection, found[0]) if found else None


def rows_of(connection: Any, stored: Any) -> GenerationRow:
    """A row as it is stored, or as its entries say where it makes no sense."""
    row, started_position = parsed_row(stored)
    if not row.damage:
        return row
    if row.generation_id not in _logged and len(_logged) < _MAX_LOGGED:
        _logged.add(row.generation_id)
        _log.error(
            "the journal's row of generation %s is damaged: %s; `whence-server verify` tells more",
            row.generation_id,
            row.damage,
        )
    if row.deleted or row.foreign:
        return row
    return _from_entries(connection, row, started_position)


def _from_entries(connection: Any, row: GenerationRow, started_position: int) -> GenerationRow:
    payloads = dict(
        connection.execute(
            "SELECT kind, payload FROM entries WHERE writer = ? AND generation = ? "
            "AND kind IN (?, ?) AND payload IS NOT NULL",
            (_WRITER, started_position, EntryKind.STARTED, EntryKind.FINISHED),
        ).fetchall()
    )
    try:
        index = index_of_started(payloads[EntryKind.STARTED])
        finished = payloads.get(EntryKind.FINISHED)
        finish = None if finished is None else index_of_finished(finished)
    except (ValueError, KeyError):
        return row
    if index.generation_id != row.generation_id:
        blank = dataclasses.replace(row.index, labels={}, prompt_preview="")
        return GenerationRow(blank, None, damage="its entries say another id", foreign=True)
    return GenerationRow(index, finish, damage=row.damage)


def started_position(connection: Any, generation_id: str) -> int:
    """Position of a generation's STARTED entry, which is looked at.

    Raises:
        GenerationNotFoundError: it is not known, or was deleted.
        RecordDamagedError: its row leads to another generation's entries.
    """
    found = connection.execute(
        "SELECT g.started_position, g.deleted, substr(e.payload, 1, ?) FROM generations g "
        "LEFT JOIN entries e ON e.writer = g.writer AND e.position = g.started_position "
        "WHERE g.generation_id = ?",
        (PEEK_BYTES, generation_id),
    ).fetchall()
    if not found:
        raise GenerationNotFoundError(generation_id)
    ((position, deleted, first),) = found
    if deleted or first is None:
        raise GenerationNotFoundError(generation_id, deleted=True)
    if peek_generation_id(first) not in (None, generation_id):
        raise RecordDamagedError(generation_id, "its row leads to another generation's entries")
    return int(position)


def last_entry(connection: Any, generation_id: str) -> Entry:
    """A generation's newest own entry; raises as `started_position`."""
    generation = started_position(connection, generation_id)
    found = connection.execute(
        'SELECT position, "offset", kind, payload FROM entries '
        'WHERE writer = ? AND generation = ? ORDER BY "offset" DESC LIMIT 1',
        (_WRITER, generation),
    ).fetchall()
    for position, offset, kind, payload in found:
        if payload is not None and kind in KINDS:
            return Entry(position, generation_id, offset, KINDS[kind], payload)
    raise RecordDamagedError(generation_id, "its last entry is missing")


def spine(connection: Any, generation_id: str) -> tuple[int, list[SpineEntry]]:
    """See `Store.spine`."""
    position = started_position(connection, generation_id)
    ((secret,),) = connection.execute(
        "SELECT secret FROM generations WHERE generation_id = ?", (generation_id,)
    )
    return position, spine_of(connection, position, secret)


def spine_of(
    connection: Any, generation: int, secret: bytes | None, before: int = 2**62
) -> list[SpineEntry]:
    """What deletion leaves, or has left, of a generation's entries before a position."""
    entries = []
    for position, offset, kind, payload, inner in connection.execute(
        'SELECT position, "offset", kind, payload, inner_digest FROM entries '
        "WHERE writer = ? AND generation = ? AND position < ? AND kind <> ? ORDER BY position",
        (_WRITER, generation, before, EntryKind.DELETED),
    ):
        if payload is not None:
            key = b"" if kind == EntryKind.CALL else secret or b""
            kept = inner_digest(key, payload)
        else:
            kept = inner or b""
        entries.append(SpineEntry(position, offset, kind, kept))
    return entries
