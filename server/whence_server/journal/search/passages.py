"""Tables of passages: the fingerprints of each generation's texts, in SQL of both databases.

A row is content of a kind: it tells that a passage is in a generation. It goes with the content.
"""

from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

SCHEMA = """
CREATE TABLE passages (
    fingerprint INTEGER NOT NULL, -- of a passage of its texts
    writer INTEGER NOT NULL,
    generation INTEGER NOT NULL, -- generations.started_position
    PRIMARY KEY (fingerprint, writer, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE searchable (
    writer INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    fingerprints BLOB NOT NULL, -- those in passages, of four bytes each: a deletion looks them up
    PRIMARY KEY (writer, generation)
) STRICT, WITHOUT ROWID;
"""
"""Migration that creates them; old migrations are never edited."""
_INSERT = "INSERT INTO passages VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_INSERT_LIST = "INSERT INTO searchable VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_READ_LIST = "SELECT fingerprints FROM searchable WHERE writer = ? AND generation = ?"
_DELETE = "DELETE FROM passages WHERE fingerprint = ? AND writer = ? AND generation = ?"
_DELETE_LIST = "DELETE FROM searchable WHERE writer = ? AND generation = ?"
_CODE = "i"
# Nothing is changed, and no deletion can come in between on a shared database.
_LOCK = """
    UPDATE generations SET deleted = deleted WHERE writer = ? AND started_position = ?
    AND deleted = 0
"""
_LIVE = "SELECT 1 FROM generations WHERE writer = ? AND started_position = ? AND deleted = 0"
_FIND = """
    SELECT writer, generation FROM passages WHERE fingerprint = ?
    ORDER BY writer DESC, generation DESC LIMIT ?
"""


_ORPHANS = """
    SELECT p.writer, p.generation FROM (
        SELECT writer, generation FROM passages UNION SELECT writer, generation FROM searchable) p
    WHERE NOT EXISTS (SELECT 1 FROM generations g WHERE g.writer = p.writer
        AND g.started_position = p.generation AND g.deleted = 0)
"""


class Place(NamedTuple):
    """Place of a generation: the number of its log's writer, and its STARTED entry's position."""

    writer: int
    generation: int


def add_passages(
    connection: Any, found: Sequence[tuple[Place, Sequence[int]]], *, is_shared: bool
) -> None:
    """Store fingerprints of generations, but for those that were deleted meanwhile."""
    rows: list[tuple[int, int, int]] = []
    for place, fingerprints in found:
        if is_shared:
            connection.execute(_LOCK, place)
        if connection.execute(_LIVE, place).fetchall():
            listed = array(_CODE, fingerprints).tobytes()
            connection.execute(_INSERT_LIST, (*place, listed))
            rows += [(fingerprint, *place) for fingerprint in fingerprints]
    if rows:
        # In the order of the table: neighbours share its pages.
        connection.executemany(_INSERT, sorted(rows))


def delete_passages(connection: Any, place: Place) -> None:
    """Remove what finds a generation."""
    for (listed,) in connection.execute(_READ_LIST, place).fetchall():
        fingerprints = array(_CODE, bytes(listed))
        connection.executemany(_DELETE, [(fingerprint, *place) for fingerprint in fingerprints])
    connection.execute(_DELETE_LIST, place)


def count_common(connection: Any, fingerprints: Sequence[int], most: int) -> Counter[Place]:
    """Return the number of fingerprints that each generation has in common with a text.

    Args:
        connection: reads the database.
        fingerprints: those of the text.
        most: most generations to read for each fingerprint, the newest first.
    """
    counted: Counter[Place] = Counter()
    for fingerprint in fingerprints:
        rows = connection.execute(_FIND, (fingerprint, most)).fetchall()
        counted.update(Place(int(writer), int(generation)) for writer, generation in rows)
    return counted


def find_orphans(connection: Any) -> list[Place]:
    """Return the places with passages that no generation on record has any more."""
    return [Place(*map(int, row)) for row in connection.execute(_ORPHANS).fetchall()]
