"""Tables of passages: the fingerprints of each generation's texts, in SQL of both databases.

A row is content of a kind: it tells that a passage is in a generation. It goes with the content.
"""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from whence_server.journal.value_index import OWNERS

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
OWNED_SCHEMA = """
DROP TABLE passages;
DROP TABLE searchable;

CREATE TABLE passages (
    fingerprint INTEGER NOT NULL, -- of a passage of its texts
    owner INTEGER NOT NULL, -- number_owner of its owner
    writer INTEGER NOT NULL,
    generation INTEGER NOT NULL, -- generations.started_position
    PRIMARY KEY (fingerprint, owner, writer, generation)
) STRICT, WITHOUT ROWID;

CREATE TABLE searchable (
    writer INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    owner INTEGER NOT NULL, -- as in passages
    fingerprints BLOB NOT NULL, -- those in passages, of four bytes each: a deletion looks them up
    PRIMARY KEY (writer, generation)
) STRICT, WITHOUT ROWID;

DELETE FROM cursors WHERE name = 'search';
"""
"""Migration that orders passages by owner; each log is indexed again from its beginning.

A caller that sees its own generations alone reads only their passages: others can neither push them
beyond a bound, nor tell by the time that it takes what they have recorded.
"""
_INSERT = "INSERT INTO passages VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_INSERT_LIST = "INSERT INTO searchable VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_READ_LIST = "SELECT owner, fingerprints FROM searchable WHERE writer = ? AND generation = ?"
_DELETE = """
    DELETE FROM passages WHERE fingerprint = ? AND owner = ? AND writer = ? AND generation = ?
"""
_DELETE_LIST = "DELETE FROM searchable WHERE writer = ? AND generation = ?"
_CODE = "i"
# Nothing is changed, and no deletion can come in between on a shared database.
_LOCK = """
    UPDATE generations SET deleted = deleted WHERE writer = ? AND started_position = ?
    AND deleted = 0
"""
_LIVE = f"""
    SELECT {OWNERS.column} FROM generations g
    WHERE g.writer = ? AND g.started_position = ? AND g.deleted = 0
"""  # noqa: S608 - constants only
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
    rows: list[tuple[int, int, int, int]] = []
    for place, fingerprints in found:
        if is_shared:
            connection.execute(_LOCK, place)
        for (named,) in connection.execute(_LIVE, place).fetchall():
            owner = number_owner("" if named is None else bytes(named).decode(errors="replace"))
            listed = array(_CODE, fingerprints).tobytes()
            connection.execute(_INSERT_LIST, (*place, owner, listed))
            rows += [(fingerprint, owner, *place) for fingerprint in fingerprints]
    if rows:
        # In the order of the table: neighbours share its pages.
        connection.executemany(_INSERT, sorted(rows))


def delete_passages(connection: Any, place: Place) -> None:
    """Remove what finds a generation."""
    for owner, listed in connection.execute(_READ_LIST, place).fetchall():
        fingerprints = array(_CODE, bytes(listed))
        connection.executemany(
            _DELETE, [(fingerprint, owner, *place) for fingerprint in fingerprints]
        )
    connection.execute(_DELETE_LIST, place)


def number_owner(owner: str) -> int:
    """Return the number that stands for an owner's id; different ids may share one."""
    digest = hashlib.sha256(owner.encode(errors="replace")).digest()
    return int.from_bytes(digest[:4], signed=True) if owner else 0


def find_orphans(connection: Any) -> list[Place]:
    """Return the places with passages that no generation on record has any more."""
    return [Place(*map(int, row)) for row in connection.execute(_ORPHANS).fetchall()]
