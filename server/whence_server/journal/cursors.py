"""Stored cursors: each has a seal that binds it to the entry at its position."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from whence_server.journal.chain import hash_genesis
from whence_server.journal.derive import compute_cursor_seal
from whence_server.journal.origin import read_origin

_log = logging.getLogger(__name__)

_ADVANCE = """
    INSERT INTO cursors (writer, name, position, seal) VALUES (?, ?, ?, ?)
    ON CONFLICT (writer, name) DO UPDATE SET position = excluded.position, seal = excluded.seal
"""
_HASH = "SELECT hash FROM entries WHERE writer = ? AND position = ?"


def advance(connection: Any, writer: int, cursors: Mapping[str, int]) -> None:
    """Store the positions of cursors of a writer's log, each with its seal."""
    origin = read_origin(connection, writer)
    for name, wanted in cursors.items():
        # A reader may still work on entries that were removed behind it.
        position = wanted if origin is None else max(wanted, origin.position)
        seal = read_expected_seal(connection, writer, name, position)
        connection.execute(_ADVANCE, (writer, name, position, seal))


def move_to_origin(connection: Any, writer: int, position: int) -> None:
    """Move cursors that stand before a journal's beginning to it: what they have not read is gone.

    Args:
        connection: connection within the transaction that removed the entries.
        writer: number of the log's writer.
        position: position of the last removed entry.
    """
    rows = connection.execute(
        "SELECT CAST(name AS BLOB) FROM cursors WHERE writer = ? AND position < ?",
        (writer, position),
    ).fetchall()
    for (raw_name,) in rows:
        # A name that is not UTF-8 belongs to no reader, and must not make a whole batch fail.
        with suppress(UnicodeDecodeError):
            advance(connection, writer, {raw_name.decode(): position})


def seal_cursors(connection: Any) -> None:
    """Seal the cursors of a journal that was written by a version without seals."""
    rows = connection.execute("SELECT CAST(name AS BLOB), position FROM cursors").fetchall()
    for raw_name, position in rows:
        name = raw_name.decode(errors="replace")
        seal = read_expected_seal(connection, 1, name, position)
        connection.execute(
            "UPDATE cursors SET seal = ? WHERE CAST(name AS BLOB) = ?", (seal, raw_name)
        )


def read_expected_seal(connection: Any, writer: int, name: str, position: int) -> bytes | None:
    """Return the seal of a cursor at a position; None if there is no entry at it."""
    origin = read_origin(connection, writer)
    if origin is not None and position == origin.position:
        return compute_cursor_seal(name, *origin)
    if position == 0:
        writers = connection.execute(
            "SELECT writer_id FROM writers WHERE writer = ?", (writer,)
        ).fetchall()
        return compute_cursor_seal(name, 0, hash_genesis(writers[0][0])) if writers else None
    found = connection.execute(_HASH, (writer, position)).fetchall()
    return compute_cursor_seal(name, position, found[0][0]) if found else None


def load_cursors(connection: Any, writer: int) -> dict[str, int]:
    """Return the positions of the stored cursors of a writer's log, by name.

    A cursor whose seal does not match restarts at 0: its reader gets every entry again and loses
    none.
    """
    cursors = {}
    for raw_name, position, seal in connection.execute(
        "SELECT CAST(name AS BLOB), position, seal FROM cursors WHERE writer = ?", (writer,)
    ):
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            _log.error("a cursor's name, %r, is not UTF-8: the cursor is ignored", raw_name)
            continue
        cursors[name] = position
        if seal is None or seal != read_expected_seal(connection, writer, name, position):
            _log.error(
                "cursor %r at position %d does not match its seal: it restarts at 0, and its "
                "reader sends all entries again",
                name,
                position,
            )
            cursors[name] = 0
    return cursors
