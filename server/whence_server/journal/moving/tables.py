"""Tables of a journal, as the present version of the schema declares them."""

from functools import cache
from typing import Any, NamedTuple

import apsw

from whence_server.journal.schema import migrate


class Table(NamedTuple):
    """A table with its columns in their order."""

    name: str
    columns: tuple[tuple[str, str], ...]
    """Name and declared type of each column: INTEGER, TEXT or BLOB."""
    key: tuple[str, ...]
    """Columns of the primary key."""

    def make_select(self) -> str:
        """Return SQL that reads all rows, texts as bytes, in the order of the key."""
        read = ", ".join(
            f'CAST("{name}" AS BLOB)' if kind == "TEXT" else f'"{name}"'
            for name, kind in self.columns
        )
        order = ", ".join(f'"{name}"' for name in self.key)
        return f"SELECT {read} FROM {self.name} ORDER BY {order}"  # noqa: S608

    def make_insert(self) -> str:
        """Return SQL that inserts one row as `make_select` reads it."""
        names = ", ".join(f'"{name}"' for name, _ in self.columns)
        values = ", ".join("CAST(? AS TEXT)" if kind == "TEXT" else "?" for _, kind in self.columns)
        return f"INSERT INTO {self.name} ({names}) VALUES ({values})"  # noqa: S608


@cache
def list_tables() -> tuple[Table, ...]:
    """Return all tables of a journal, by name."""
    fresh: Any = apsw.Connection(":memory:")
    migrate(fresh)
    names = fresh.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    tables = tuple(_read_table(fresh, name) for (name,) in names.fetchall())
    fresh.close()
    return tables


def _read_table(connection: Any, name: str) -> Table:
    columns = connection.execute(
        "SELECT name, type, pk FROM pragma_table_info(?)", (name,)
    ).fetchall()
    keyed = sorted((place, column) for column, _, place in columns if place)
    return Table(
        name,
        tuple((column, kind) for column, kind, _ in columns),
        tuple(column for _, column in keyed),
    )
