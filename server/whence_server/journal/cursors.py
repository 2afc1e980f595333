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
    INSERT INTO cursors (name, position, seal) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET position = excluded.position, seal = excluded.seal
"""
_HASH = "SELECT hash FROM entries WHERE writer = 1 AND position = ?"


def advance(connection: Any, cursors: Mapping[str, int]) -> None:
    """Store the positions of cursors, each with its seal."""
    origin = read_origin(connection)
    for name, wanted in cursors.items():
        # A reader may still work on entries that were removed behind it.
        position = wanted if origin is None else max(wanted, origin.position)
        connection.execute(
            _ADVANCE, (name, position, read_expected_seal(connection, name, position))
        )


def move_to_origin(connection: Any, position: int) -> None:
    """Move cursors that stand before a journal's beginning to it: what they have not read is gone.

    Args:
        connection: connection within the transaction that removed the entries.
        position: position of the last removed entry.
    """
    rows = connection.execute(
        "SELECT CAST(name AS BLOB) FROM cursors WHERE position < ?", (position,)
    ).fetchall()
    for (raw_name,) in rows:
        # A name that is not UTF-8 belongs to no reader, and must not make a whole batch fail.
        with suppress(UnicodeDecodeError):
            advance(connection, {raw_name.decode(): position})


def seal_cursors(connection: Any) -> None:
    """Seal the cursors of a journal that was written by a version without seals."""
    rows = connection.execute("SELECT name, position FROM cursors").fetchall()
    advance(connection, dict(rows))


def read_expected_seal(connection: Any, name: str, position: int) -> bytes | None:
    """Return the seal of a cursor at a position; None if there is no entry at it."""
    origin = read_origin(connection)
    if origin is not None and position == origin.position:
        return compute_cursor_seal(name, *origin)
    if position == 0:
        writers = connection.execute("SELECT writer_id FROM writers WHERE writer = 1").fetchall()
        return compute_cursor_seal(name, 0, hash_genesis(writers[0][0])) if writers else None
    found = connection.execute(_HASH, (position,)).fetchall()
    return compute_cursor_seal(name, position, found[0][0]) if found else None


def load_cursors(connection: Any) -> dict[str, int]:
    """Return the positions of the stored cursors, by name.

    A cursor whose seal does not match restarts at 0: its reader gets every entry again and loses
    none.
    """
    cursors = {}
    for raw_name, position, seal in connection.execute(
        "SELECT CAST(name AS BLOB), position, seal FROM cursors"
    ):
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            _log.error("a cursor's name, %r, is not UTF-8: the cursor is ignored", raw_name)
            continue
        cursors[name] = position
        if seal is None or seal != read_expected_seal(connection, name, position):
            _log.error(
                "cursor %r at position %d does not match its seal: it restarts at 0, and its "
                "reader sends all entries again",
                name,
                position,
            )
            cursors[name] = 0
    return cursors
