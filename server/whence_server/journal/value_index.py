"""Index over one value of generations: a row for each generation that has it, newest last."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ValueIndex:
    """An index over a value that some generations have.

    Attributes:
        table: name of its table.
        name: name of the value's column.
    """

    table: str
    name: str

    @property
    def schema(self) -> str:
        """SQL that creates the table."""
        table, name = self.table, self.name
        return f"""
CREATE TABLE {table} (
    {name} TEXT NOT NULL,
    start_time_ns INTEGER NOT NULL, -- its generation's
    generation_id TEXT NOT NULL,
    PRIMARY KEY ({name}, start_time_ns, generation_id)
) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX {table}_by_generation ON {table} (generation_id);
"""

    @property
    def insert(self) -> str:
        """SQL that sets a generation's value; its bindings are those of `bind`."""
        return f"""
    INSERT INTO {self.table} VALUES (?, ?, ?) ON CONFLICT (generation_id)
    DO UPDATE SET {self.name} = excluded.{self.name}, start_time_ns = excluded.start_time_ns
"""  # noqa: S608 - constants only

    @property
    def delete(self) -> str:
        """SQL that removes a generation's value."""
        return f"DELETE FROM {self.table} WHERE generation_id = ?"  # noqa: S608

    @property
    def column(self) -> str:
        """SQL of the value of a row of `generations g`; NULL without one."""
        return (
            f"(SELECT CAST(o.{self.name} AS BLOB) FROM {self.table} o "  # noqa: S608
            "WHERE o.generation_id = g.generation_id)"
        )

    @property
    def condition(self) -> str:
        """SQL condition that a row of `generations g` has the bound value."""
        return (
            f"EXISTS (SELECT 1 FROM {self.table} o "  # noqa: S608
            f"WHERE o.generation_id = g.generation_id AND o.{self.name} = ?)"
        )

    def bind(self, value: str, start_time_ns: int, generation_id: str) -> tuple[str, int, str]:
        """Return the bindings of `insert`."""
        return replace_surrogates(value), start_time_ns, generation_id

    def read(self, connection: Any, generation_id: str) -> list[tuple[str, int]]:
        """Return value and start time of a generation's rows; one row, or none."""
        rows = connection.execute(
            f"SELECT CAST({self.name} AS BLOB), start_time_ns FROM {self.table} "  # noqa: S608
            "WHERE generation_id = ?",
            (generation_id,),
        )
        return [(value.decode(errors="replace"), start_time_ns) for value, start_time_ns in rows]

    def read_all(self, connection: Any) -> set[tuple[bytes, int, bytes]]:
        """Return all rows; texts as bytes, because damaged ones may not be UTF-8."""
        return set(
            connection.execute(
                f"SELECT CAST({self.name} AS BLOB), start_time_ns, "  # noqa: S608
                f"CAST(generation_id AS BLOB) FROM {self.table}"
            )
        )

    def list_orphans(self, connection: Any) -> list[bytes]:
        """Return the ids in the index that belong to no generation."""
        rows = connection.execute(
            f"SELECT CAST(o.generation_id AS BLOB) FROM {self.table} o "  # noqa: S608
            "WHERE NOT EXISTS "
            "(SELECT 1 FROM generations g WHERE g.generation_id = o.generation_id)"
        )
        return [generation_id for (generation_id,) in rows.fetchall()]


def replace_surrogates(given: str) -> str:
    """Return a text without lone surrogates, which have no UTF-8."""
    return given.encode(errors="replace").decode()


OWNERS = ValueIndex("owners", "owner")
"""Callers that started generations."""
PARENTS = ValueIndex("parents", "parent")
"""Generations that others are branches of; they need not exist any more."""
