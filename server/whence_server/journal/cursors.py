"""Stored cursors: each has a seal that binds it to the entry at its position."""

import logging
from collections.abc import Mapping
from typing import Any

from whence_server.journal.chain import hash_genesis
from whence_server.journal.derive import compute_cursor_seal

_log = logging.getLogger(__name__)

_ADVANCE = """
    INSERT INTO cursors (name, position, seal) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET position = excluded.position, seal = excluded.seal
"""
_HASH = "SELECT hash FROM entries WHERE writer = 1 AND position = ?"


def advance(connection: Any, cursors: Mapping[str, int]) -> None:
    """Store the positions of cursors, each with its seal."""
    for name, position in cursors.items():
        connection.execute(
            _ADVANCE, (name, position, read_expected_seal(connection, name, position))
        )


def seal_cursors(connection: Any) -> None:
    """Seal the cursors of a journal that was written by a version without seals."""
    rows = connection.execute("SELECT name, position FROM cursors").fetchall()
    advance(connection, dict(rows))


def read_expected_seal(connection: Any, name: str, position: int) -> bytes | None:
    """Return the seal of a cursor at a position; None if there is no entry at it."""
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
