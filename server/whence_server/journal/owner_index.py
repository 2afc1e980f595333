"""Index over owners: a row for each generation that has one, newest last."""

from typing import Any

from whence_server.journal.rows import GenerationIndex

SCHEMA = """
CREATE TABLE owners (
    owner TEXT NOT NULL,
    start_time_ns INTEGER NOT NULL, -- its generation's
    generation_id TEXT NOT NULL,
    PRIMARY KEY (owner, start_time_ns, generation_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX owners_by_generation ON owners (generation_id);
"""
INSERT = "INSERT OR REPLACE INTO owners VALUES (?, ?, ?)"
DELETE = "DELETE FROM owners WHERE generation_id = ?"
COLUMN = "(SELECT CAST(o.owner AS BLOB) FROM owners o WHERE o.generation_id = g.generation_id)"
"""Owner of a row of `generations g`; NULL without one."""


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
