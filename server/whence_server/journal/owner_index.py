"""Index over owners: a row for each generation that has one, newest last."""

from typing import Any

from whence_server.journal.rows import GenerationIndex
from whence_server.journal.store import Owned

SCHEMA = """
CREATE TABLE owners (
    owner TEXT NOT NULL,
    start_time_ns INTEGER NOT NULL, -- its generation's
    generation_id TEXT NOT NULL,
    PRIMARY KEY (owner, start_time_ns, generation_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX owners_by_generation ON owners (generation_id);
"""
INSERT = """
    INSERT INTO owners VALUES (?, ?, ?) ON CONFLICT (generation_id)
    DO UPDATE SET owner = excluded.owner, start_time_ns = excluded.start_time_ns
"""
DELETE = "DELETE FROM owners WHERE generation_id = ?"
COLUMN = "(SELECT CAST(o.owner AS BLOB) FROM owners o WHERE o.generation_id = g.generation_id)"
"""Owner of a row of `generations g`; NULL without one."""

_MEASURE = """
    SELECT coalesce(sum(length(e.payload)), 0) FROM owners o
    JOIN generations g ON g.generation_id = o.generation_id
    JOIN entries e ON e.writer = g.writer AND e.generation = g.started_position
    WHERE o.owner = ?
"""
_OLDEST = """
    SELECT CAST(generation_id AS BLOB) FROM owners WHERE owner = ? ORDER BY start_time_ns LIMIT 3
"""


def bind_owner(index: GenerationIndex) -> tuple[str, int, str]:
    """Return the bindings of INSERT."""
    owner = index.owner.encode(errors="replace").decode()
    return owner, index.start_time_ns, index.generation_id


def read_owners(connection: Any, generation_id: str) -> list[tuple[str, int]]:
    """Return owner and start time of a generation's rows; one row, or none."""
    rows = connection.execute(
        "SELECT CAST(owner AS BLOB), start_time_ns FROM owners WHERE generation_id = ?",
        (generation_id,),
    )
    return [(owner.decode(errors="replace"), start_time_ns) for owner, start_time_ns in rows]


def measure_owner(connection: Any, owner: str) -> Owned:
    """Count the bytes of the entries of an owner's generations, and find the oldest of these."""
    name = owner.encode(errors="replace").decode()
    ((num_bytes,),) = connection.execute(_MEASURE, (name,)).fetchall()
    oldest = connection.execute(_OLDEST, (name,))
    return Owned(int(num_bytes), tuple(found.decode(errors="replace") for (found,) in oldest))
