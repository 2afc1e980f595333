"""The place at which a journal begins, once its oldest entries were removed."""

from typing import Any

from whence_server.journal.chain import Origin

SCHEMA = """
CREATE TABLE origins (
    writer INTEGER PRIMARY KEY,
    position INTEGER NOT NULL, -- the last entry that was removed
    hash BLOB NOT NULL -- its hash, from which the chain continues
) STRICT;
CREATE INDEX generations_kept ON generations (writer, started_position) WHERE deleted = 0;
"""

# A deletion's record is the last trace of its generation: the row goes with it.
_FORGET = """
    DELETE FROM generations WHERE writer = ? AND deleted = 1 AND started_position IN (
        SELECT generation FROM entries
        WHERE writer = ? AND position <= ? AND kind = 7 AND generation > 0)
"""
_SET = """
    INSERT INTO origins (writer, position, hash) VALUES (?, ?, ?)
    ON CONFLICT (writer) DO UPDATE SET position = excluded.position, hash = excluded.hash
"""


def read_origin(connection: Any, writer: int = 1) -> Origin | None:
    """Return the place at which a writer's log begins; None if no entry was removed."""
    exists = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'origins'").fetchall()
    if not exists:
        return None
    found = connection.execute(
        "SELECT position, hash FROM origins WHERE writer = ?", (writer,)
    ).fetchall()
    return Origin(*found[0]) if found else None


def remove_entries(connection: Any, writer: int, origin: Origin) -> None:
    """Remove the entries of a writer's log up to a position, in the transaction of the caller."""
    connection.execute(_FORGET, (writer, writer, origin.position))
    connection.execute(
        "DELETE FROM entries WHERE writer = ? AND position <= ?", (writer, origin.position)
    )
    connection.execute(_SET, (writer, *origin))
