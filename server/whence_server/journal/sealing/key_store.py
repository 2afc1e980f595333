"""Interface of a database of wrapped data keys, and its rows in SQL of both databases.

It lies apart from the journal's tables, so that a key can be destroyed for every copy of them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

_COLUMNS = "CAST(generation_id AS BLOB), key_id, CAST(master_id AS BLOB), wrapped"
_FIND = f"SELECT {_COLUMNS} FROM data_keys WHERE generation_id = ?"  # noqa: S608 - constants only
_COUNT = "SELECT CAST(master_id AS BLOB), count(*) FROM data_keys GROUP BY master_id"
_DOOMED = "SELECT CAST(generation_id AS BLOB) FROM data_keys WHERE doomed = 1"
_IDS = "SELECT CAST(generation_id AS BLOB), key_id FROM data_keys"
_ALL = f"SELECT {_COLUMNS} FROM data_keys ORDER BY generation_id"  # noqa: S608
_OTHERS = f"""
    SELECT {_COLUMNS} FROM data_keys
    WHERE master_id <> ? AND (generation_id, key_id) > (CAST(? AS TEXT), ?)
    ORDER BY generation_id, key_id LIMIT ?
"""  # noqa: S608  # constants only
_REWRAP = """
    UPDATE data_keys SET master_id = ?, wrapped = ? WHERE generation_id = ? AND key_id = ?
"""
_SET_FACT = """
    INSERT INTO facts (name, value) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""
_SET_DOOMED = "UPDATE data_keys SET doomed = ? WHERE generation_id = ?"
_DESTROY = "DELETE FROM data_keys WHERE generation_id = ?"
_DESTROY_ONE = "DELETE FROM data_keys WHERE generation_id = ? AND key_id = ?"


class WrappedKey(NamedTuple):
    """A data key as it is stored."""

    generation_id: str
    key_id: bytes
    master_id: str
    wrapped: bytes


class KeyStore(Protocol):
    """Database of the keys of one journal; its methods may be called from any thread."""

    @property
    def name(self) -> str:
        """Name of the database, for messages."""

    def read_fact(self, name: str) -> bytes | None:
        """Return a stored fact; None if there is none."""

    def find(self, generation_id: str) -> list[WrappedKey]:
        """Return a generation's keys: those of starts that were never committed among them."""

    def count_by_master(self) -> dict[str, int]:
        """Return the number of data keys under each master key, by its id."""

    def list_doomed(self) -> list[str]:
        """Return the ids of generations whose deletion was interrupted, or is in progress."""

    def list_keys(self) -> list[tuple[str, bytes]]:
        """Return the generation's id and the key's id of every key."""

    def read_all(self) -> list[WrappedKey]:
        """Return all keys."""

    def write(self, change: "Callable[[KeyRows], bool]", *, exclusive: bool = False) -> bool:
        """Call a function with the rows, in one transaction that is synced to disk.

        Args:
            change: changes the rows; False takes its changes back.
            exclusive: whether no other transaction may write meanwhile; the others may run beside
                each other.

        Returns:
            The function's result.

        Raises:
            JournalUnwritableError: the database is away, full or failing; nothing is changed.
        """

    def doom(self, generation_ids: Iterable[str]) -> None:
        """Mark the keys of generations that are about to be deleted; raise as `write` does."""

    def spare(self, generation_ids: Iterable[str]) -> None:
        """Take `doom` back; raise as `write` does."""

    def destroy(self, generation_ids: Iterable[str]) -> None:
        """Remove the keys of generations; raise as `write` does."""

    def close(self) -> None:
        """Close the database."""


class KeyRows:
    """Rows of a database of keys within one transaction.

    All changes of several rows are in the order of the key: none waits for one that waits for it.

    Args:
        connection: connection of apsw, or one with the same methods.
        unique: columns that identify a key, one or two.
    """

    def __init__(self, connection: Any, unique: str) -> None:
        self._connection = connection
        self._insert = (
            "INSERT INTO data_keys (generation_id, key_id, master_id, wrapped) "  # noqa: S608
            f"VALUES (?, ?, ?, ?) ON CONFLICT ({unique}) DO UPDATE SET key_id = excluded.key_id, "
            "master_id = excluded.master_id, wrapped = excluded.wrapped, doomed = 0"
        )

    def get_fact(self, name: str) -> bytes | None:
        """Return a fact; None if there is none."""
        rows = self._select("SELECT value FROM facts WHERE name = ?", (name,))
        return rows[0][0] if rows else None

    def set_fact(self, name: str, value: bytes) -> None:
        """Store a fact."""
        self._connection.execute(_SET_FACT, (name, value))

    def insert(self, keys: Sequence[WrappedKey]) -> None:
        """Store data keys; the same key may be stored again."""
        self._connection.executemany(self._insert, sorted(keys))

    def find(self, generation_id: str) -> list[WrappedKey]:
        """Return a generation's keys."""
        return _make_keys(self._select(_FIND, (generation_id,)))

    def list_others(self, master_id: str, after: tuple[str, bytes], limit: int) -> list[WrappedKey]:
        """Return the next data keys that another master key wraps.

        Args:
            master_id: id of the master key that wraps none of them.
            after: ids of a generation and a key, in whose order they come after.
            limit: maximum number of them.
        """
        return _make_keys(self._select(_OTHERS, (master_id, *after, limit)))

    def rewrap(self, keys: Sequence[WrappedKey]) -> None:
        """Replace wrapped keys by ones under another master key."""
        self._connection.executemany(
            _REWRAP, [(key.master_id, key.wrapped, key.generation_id, key.key_id) for key in keys]
        )

    def count_by_master(self) -> dict[str, int]:
        """Return the number of data keys under each master key, by its id."""
        return {_decode(raw_id): number for raw_id, number in self._select(_COUNT)}

    def list_doomed(self) -> list[str]:
        """Return the ids of generations whose keys are marked."""
        return [_decode(raw_id) for (raw_id,) in self._select(_DOOMED)]

    def list_keys(self) -> list[tuple[str, bytes]]:
        """Return the generation's id and the key's id of every key."""
        return [(_decode(raw_id), key_id) for raw_id, key_id in self._select(_IDS)]

    def read_all(self) -> list[WrappedKey]:
        """Return all keys."""
        return _make_keys(self._select(_ALL))

    def set_doomed(self, generation_ids: Iterable[str], *, doomed: bool) -> None:
        """Mark the keys of generations, or take the mark back."""
        self._connection.executemany(
            _SET_DOOMED, [(int(doomed), it) for it in sorted(generation_ids)]
        )

    def destroy(self, generation_ids: Iterable[str]) -> None:
        """Remove the keys of generations."""
        self._connection.executemany(_DESTROY, [(it,) for it in sorted(generation_ids)])

    def destroy_keys(self, keys: Iterable[tuple[str, bytes]]) -> None:
        """Remove keys by their generation's id and their own."""
        self._connection.executemany(_DESTROY_ONE, sorted(keys))

    def _select(self, sql: str, bindings: Sequence[Any] = ()) -> list[Any]:
        found: list[Any] = self._connection.execute(sql, bindings).fetchall()
        return found


class KeyWrites:
    """Changes of a database of keys that `write` makes; the base of both databases."""

    def write(self, change: Callable[[KeyRows], bool], *, exclusive: bool = False) -> bool:
        """Call a function with the rows in one transaction, as `KeyStore.write`."""
        raise NotImplementedError

    def doom(self, generation_ids: Iterable[str]) -> None:
        """Mark the keys of generations that are about to be deleted; raise as `write` does."""
        self._change(lambda rows: rows.set_doomed(generation_ids, doomed=True))

    def spare(self, generation_ids: Iterable[str]) -> None:
        """Take `doom` back; raise as `write` does."""
        self._change(lambda rows: rows.set_doomed(generation_ids, doomed=False))

    def destroy(self, generation_ids: Iterable[str]) -> None:
        """Remove the keys of generations; raise as `write` does."""
        self._change(lambda rows: rows.destroy(generation_ids))

    def _change(self, change: Callable[[KeyRows], None]) -> None:
        def run(rows: KeyRows) -> bool:
            change(rows)
            return True

        self.write(run)


def choose_key(found: Sequence[WrappedKey], read_key_id: Callable[[], bytes]) -> WrappedKey | None:
    """Return the key of a generation; None if it has none.

    A server that lost its log may have stored another key under an id that was used elsewhere.

    Args:
        found: the generation's keys.
        read_key_id: returns the id of the key that the generation's STARTED entry names; called
            only if there is a choice.
    """
    if len(found) <= 1:
        return found[0] if found else None
    named = read_key_id()
    return next((key for key in found if key.key_id == named), None)


def _make_keys(rows: list[Any]) -> list[WrappedKey]:
    return [
        WrappedKey(_decode(generation_id), key_id, _decode(master_id), wrapped)
        for generation_id, key_id, master_id, wrapped in rows
    ]


def _decode(raw: bytes) -> str:
    return raw.decode(errors="replace")
