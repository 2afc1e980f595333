"""One generation's row and entries from the database; entries replace a damaged row."""

import dataclasses
import logging
from typing import Any, NamedTuple

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    GenerationInOtherLogError,
    GenerationNotFoundError,
    RecordDamagedError,
)
from whence_server.journal.chain import digest_payload
from whence_server.journal.derive import (
    PEEK_BYTES,
    EntryDigest,
    derive_finished_index,
    derive_started_index,
    peek_generation_id,
)
from whence_server.journal.rows import GenerationRow
from whence_server.journal.sealing.stored_form import peek_key_id
from whence_server.journal.sql_rows import KINDS, ROW_COLUMNS, parse_row

_log = logging.getLogger(__name__)

_MAX_LOGGED = 1_000
_logged: set[str] = set()


def find_generation(connection: Any, generation_id: str) -> GenerationRow | None:
    """Return a generation's row, deleted or not; None if the id is unknown."""
    found = connection.execute(
        f"SELECT {ROW_COLUMNS} FROM generations g WHERE g.generation_id = ?",  # noqa: S608
        (generation_id,),
    ).fetchall()
    return load_row(connection, found[0]) if found else None


def load_row(connection: Any, stored: Any) -> GenerationRow:
    """Parse a stored row; if it is damaged, derive it from its entries."""
    row, writer, started_position = parse_row(stored)
    if not row.damage:
        return row
    if row.generation_id not in _logged and len(_logged) < _MAX_LOGGED:
        _logged.add(row.generation_id)
        _log.error(
            "the journal's row of generation %s is damaged: %s; run `whence-server verify`",
            row.generation_id,
            row.damage,
        )
    if row.deleted or row.foreign:
        return row
    return _derive_from_entries(connection, row, writer, started_position)


def _derive_from_entries(
    connection: Any, row: GenerationRow, writer: int, started_position: int
) -> GenerationRow:
    payloads = dict(
        connection.execute(
            "SELECT kind, payload FROM entries WHERE writer = ? AND generation = ? "
            "AND kind IN (?, ?) AND payload IS NOT NULL",
            (writer, started_position, EntryKind.STARTED, EntryKind.FINISHED),
        ).fetchall()
    )
    try:
        index = derive_started_index(payloads[EntryKind.STARTED])
        finished = payloads.get(EntryKind.FINISHED)
        finish = None if finished is None else derive_finished_index(finished)
    except (ValueError, KeyError):
        return row
    if index.generation_id != row.generation_id:
        blank = dataclasses.replace(row.index, labels={}, prompt_preview="")
        return GenerationRow(blank, None, damage="its entries have another id", foreign=True)
    key_id = peek_key_id(payloads[EntryKind.STARTED])
    return GenerationRow(index, finish, damage=row.damage, key_id=key_id)


class Place(NamedTuple):
    """Place of a generation: the number of its log's writer, and its STARTED entry's position."""

    writer: int
    started_position: int


def find_place(connection: Any, generation_id: str) -> Place:
    """Return the place of a generation, after a check of its id.

    Raises:
        GenerationNotFoundError: it is not known, or was deleted.
        RecordDamagedError: its row points to another generation's entries.
    """
    found = connection.execute(
        "SELECT g.writer, g.started_position, g.deleted, "  # noqa: S608 - constants only
        f"substr(e.payload, 1, {PEEK_BYTES}) FROM generations g "
        "LEFT JOIN entries e ON e.writer = g.writer AND e.position = g.started_position "
        "WHERE g.generation_id = ?",
        (generation_id,),
    ).fetchall()
    if not found:
        raise GenerationNotFoundError(generation_id)
    ((writer, position, deleted, first),) = found
    if deleted or first is None:
        raise GenerationNotFoundError(generation_id, deleted=True)
    if peek_generation_id(first) not in (None, generation_id):
        raise RecordDamagedError(generation_id, "its row points to another generation's entries")
    return Place(int(writer), int(position))


def read_last_entry(connection: Any, generation_id: str) -> Entry:
    """Return a generation's newest own entry; raise as `find_place` does."""
    place = find_place(connection, generation_id)
    found = connection.execute(
        'SELECT position, "offset", kind, payload FROM entries '
        'WHERE writer = ? AND generation = ? ORDER BY "offset" DESC LIMIT 1',
        place,
    ).fetchall()
    for position, offset, kind, payload in found:
        if payload is not None and kind in KINDS:
            return Entry(position, generation_id, offset, KINDS[kind], payload)
    raise RecordDamagedError(generation_id, "its last entry is missing")


def find_ended(connection: Any, generation_id: str, own: int) -> tuple[int, bytes]:
    """Find the position and the secret as `Store.find_ended` does, in the log of a writer."""
    writer, position = find_place(connection, generation_id)
    if writer != own:
        raise GenerationInOtherLogError(generation_id)
    ((secret,),) = connection.execute(
        "SELECT secret FROM generations WHERE generation_id = ?", (generation_id,)
    )
    return position, secret


def read_entry_digests(
    connection: Any, generation_id: str, own: int
) -> tuple[int, list[EntryDigest]]:
    """Read digests as `Store.read_entry_digests` does, from the log of a writer."""
    position, secret = find_ended(connection, generation_id, own)
    return position, collect_entry_digests(connection, own, position, secret)


def collect_entry_digests(
    connection: Any, writer: int, generation: int, secret: bytes | None, before: int = 2**62
) -> list[EntryDigest]:
    """Return the digests of a generation's entries before a position."""
    entries = []
    for position, offset, kind, payload, inner in connection.execute(
        # By its primary key, SQLite would walk over the whole table in the order that is asked for.
        'SELECT position, "offset", kind, payload, inner_digest '
        "FROM entries INDEXED BY entries_by_generation "
        "WHERE writer = ? AND generation = ? AND position < ? AND kind <> ? ORDER BY position",
        (writer, generation, before, EntryKind.DELETED),
    ):
        kept = digest_payload(kind, secret, payload) if payload is not None else inner or b""
        entries.append(EntryDigest(position, offset, kind, kept))
    return entries
