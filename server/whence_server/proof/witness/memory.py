"""Memory of a witness: the newest checkpoint that it has cosigned of each log."""

from pathlib import Path
from typing import Any, NamedTuple

import apsw

from whence.proof.merkle_tree import EMPTY_ROOT
from whence_server.domain.errors import ConfigurationError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS owner (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    key TEXT NOT NULL -- of the witness, whose cosignatures this database remembers
) STRICT;
CREATE TABLE IF NOT EXISTS logs (
    origin TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    root BLOB NOT NULL
) STRICT, WITHOUT ROWID;
"""
_ADVANCE = "UPDATE logs SET size = ?, root = ? WHERE origin = ? AND size = ? AND root = ?"
_BUSY_MS = 5_000


class LogPlace(NamedTuple):
    """Newest state of a log that was cosigned."""

    size: int
    root: bytes


class WitnessMemory:
    """Database of a witness; what it remembers is on disk before a cosignature is given.

    Args:
        path: SQLite database; created with mode 0600 if it does not exist.
        origins: logs that the witness knows.

    Raises:
        ConfigurationError: it cannot be opened.
    """

    def __init__(self, path: Path, origins: list[str]) -> None:
        try:
            path.touch(mode=0o600)
            self._connection: Any = apsw.Connection(str(path))
            self._connection.set_busy_timeout(_BUSY_MS)
            self._connection.pragma("journal_mode", "wal")
            self._connection.pragma("synchronous", "FULL")
            self._connection.execute(_SCHEMA)
            self._connection.executemany(
                "INSERT OR IGNORE INTO logs VALUES (?, 0, ?)",
                [(origin, EMPTY_ROOT) for origin in origins],
            )
        except (apsw.Error, OSError) as error:
            raise ConfigurationError(f"--db {path} cannot be opened: {error}") from error

    @property
    def owner(self) -> str:
        """Key of the witness, as text; "" if no witness has used the database yet."""
        rows = self._connection.execute("SELECT key FROM owner").fetchall()
        return str(rows[0][0]) if rows else ""

    def bind(self, key: str) -> None:
        """Remember the witness's key.

        Raises:
            ConfigurationError: the database is that of another witness.
        """
        with self._connection:
            self._connection.execute("INSERT OR IGNORE INTO owner VALUES (1, ?)", (key,))
        if self.owner != key:
            raise ConfigurationError(
                f"--db is the memory of the witness {self.owner}, and --key is of {key}: give the "
                "two that belong together"
            )

    def read(self, origin: str) -> LogPlace:
        """Return the newest cosigned state of a known log."""
        rows = self._connection.execute("SELECT size, root FROM logs WHERE origin = ?", (origin,))
        ((size, root),) = rows.fetchall()
        return LogPlace(size, root)

    def advance(self, origin: str, old: LogPlace, new: LogPlace) -> bool:
        """Remember a newer state; return False if another process was faster."""
        with self._connection:
            self._connection.execute(_ADVANCE, (*new, origin, *old))
            return bool(self._connection.changes())

    def close(self) -> None:
        """Close the database."""
        self._connection.close()
