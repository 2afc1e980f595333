"""State of a log when it is opened, from its entries, not from the columns beside them."""

import logging
from typing import Any

from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import ConfigurationError
from whence_server.journal.chain import SECRET_BYTES, hash_genesis
from whence_server.journal.cursors import load_cursors
from whence_server.journal.sql_lookup import find_generation
from whence_server.journal.store import State, Unfinished

_log = logging.getLogger(__name__)

_OPEN = f"""
    SELECT CAST(g.generation_id AS BLOB), g.started_position, g.secret, l."offset"
    FROM generations g
    JOIN entries s ON s.writer = g.writer AND s.position = g.started_position
    JOIN entries l ON l.writer = g.writer AND l.position = (
        SELECT e.position FROM entries e
        WHERE e.writer = g.writer AND e.generation = g.started_position
        ORDER BY e."offset" DESC LIMIT 1)
    WHERE g.writer = ? AND s.kind = {EntryKind.STARTED:d} AND s.payload IS NOT NULL
        AND l.kind <> {EntryKind.FINISHED:d}
    ORDER BY g.started_position
"""  # noqa: S608  # constants only
_UNCALLED = f"""
    SELECT CAST(g.generation_id AS BLOB) FROM generations g
    WHERE g.writer = ? AND g.deleted = 0 AND NOT EXISTS (
        SELECT 1 FROM entries e
        WHERE e.writer = g.writer AND e.generation = g.started_position
            AND e."offset" = 0 AND e.kind = {EntryKind.CALL:d})
"""  # noqa: S608  # constants only


def load_state(connection: Any, writer: int, writer_id: bytes) -> State:
    """Read the state of a log.

    Args:
        connection: reads the database.
        writer: number of the log's writer.
        writer_id: the log's UUID, 16 bytes.

    Raises:
        ConfigurationError: a row has a position after the log's end.
    """
    last = connection.execute(
        "SELECT position, hash FROM entries WHERE writer = ? ORDER BY position DESC LIMIT 1",
        (writer,),
    ).fetchall()
    position, last_hash = last[0] if last else (0, hash_genesis(writer_id))
    _check_places(connection, writer, position)
    rows = connection.execute(_UNCALLED, (writer,)).fetchall()
    uncalled = [row[0].decode(errors="replace") for row in rows]
    return State(
        writer_id,
        position,
        last_hash,
        _load_unfinished(connection, writer),
        uncalled,
        load_cursors(connection, writer),
    )


def _load_unfinished(connection: Any, writer: int) -> list[Unfinished]:
    """Return the generations whose newest entry is not FINISHED."""
    unfinished = []
    for raw_id, started_position, secret, last_offset in connection.execute(
        _OPEN, (writer,)
    ).fetchall():
        generation_id = raw_id.decode(errors="replace")
        row = find_generation(connection, generation_id)
        if row is None or row.foreign or row.deleted or secret is None:
            _log_unclosable(generation_id, row.damage if row else "its id is not UTF-8")
        elif len(secret) != SECRET_BYTES:
            _log_unclosable(generation_id, "its secret is damaged")
        else:
            unfinished.append(Unfinished(started_position, secret, last_offset, row.index))
    return unfinished


def _log_unclosable(generation_id: str, damage: str) -> None:
    _log.error(
        "generation %s was interrupted, and its FINISHED entry cannot be appended: %s; "
        "run `whence-server verify`",
        generation_id,
        damage or "its row is damaged",
    )


def _check_places(connection: Any, writer: int, position: int) -> None:
    beyond = connection.execute(
        "SELECT CAST(generation_id AS BLOB) FROM generations "
        "WHERE writer = ? AND started_position > ? LIMIT 1",
        (writer, position),
    ).fetchall()
    if beyond:
        generation_id = beyond[0][0].decode(errors="replace")
        raise ConfigurationError(
            f"the journal is damaged: generation {generation_id!r} has a position after the "
            f"newest entry, {position}; run `whence-server verify`, which with --rebuild repairs "
            "all rows that follow from the entries"
        )
