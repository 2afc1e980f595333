"""Cursors as they are stored: each is sealed to the entry that it stands at."""

import logging
from collections.abc import Mapping
from typing import Any

from whence_server.journal.chain import genesis
from whence_server.journal.derive import cursor_seal

_log = logging.getLogger(__name__)

_ADVANCE = """
    INSERT INTO cursors (name, position, seal) VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET position = excluded.position, seal = excluded.seal
"""
_HASH = "SELECT hash FROM entries WHERE writer = 1 AND position = ?"


def advance(connection: Any, cursors: Mapping[str, int]) -> None:
    """Store where cursors have come to, each with its seal."""
    for name, position in cursors.items():
        connection.execute(_ADVANCE, (name, position, expected_seal(connection, name, position)))


def seal_cursors(connection: Any) -> None:
    """Seal the cursors of a journal that was written before there were seals."""
    rows = connection.execute("SELECT name, position FROM cursors").fetchall()
    advance(connection, dict(rows))


def expected_seal(connection: Any, name: str, position: int) -> bytes | None:
    """The seal of a cursor at a position; None where there is no entry."""
    if position == 0:
        writers = connection.execute("SELECT writer_id FROM writers WHERE writer = 1").fetchall()
        return cursor_seal(name, 0, genesis(writers[0][0])) if writers else None
    found = connection.execute(_HASH, (position,)).fetchall()
    return cursor_seal(name, position, found[0][0]) if found else None


def sound_cursors(connection: Any) -> dict[str, int]:
    """The cursors as they were stored.

    One that is not goes back to the beginning: what follows it gets everything once more, and
    loses nothing.
    """
    cursors = {}
    for raw_name, position, seal in connection.execute(
        "SELECT CAST(name AS BLOB), position, seal FROM cursors"
    ):
        try:
            name = raw_name.decode()
        except UnicodeDecodeError:
            _log.error("a cursor's name, %r, is no UTF-8: it is left out", raw_name)
            continue
        cursors[name] = position
        if seal is None or seal != expected_seal(connection, name, position):
            _log.error(
                "cursor %r is not as it was stored (it says position %d): it begins again at 0, "
                "and what it had sent is sent once more",
                name,
                position,
            )
            cursors[name] = 0
    return cursors
