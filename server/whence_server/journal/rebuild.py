"""Writes the columns beside the entries anew, out of the entries, which stay as they are."""

import secrets
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError
from whence_server.journal import cursors, label_index
from whence_server.journal.audit import Audit
from whence_server.journal.chain import ChainRow
from whence_server.journal.expected import (
    SELECT_STORED,
    Deletion,
    ExpectedRow,
    StoredRow,
    expected_row,
    labels_text,
    stored_row,
)
from whence_server.journal.findings import VerifyReport
from whence_server.journal.lock import DirectoryLock
from whence_server.journal.rows import Durability
from whence_server.journal.sqlite_store import SqliteStore


def rebuild_journal(data_dir: Path) -> int:
    """Rebuild the rows that do not follow from their entries, in one transaction.

    The chain has to be intact: only then do entries prove anything. An id of a generation that
    an earlier version deleted follows from nothing, and stays.

    Returns:
        The number of rows that were changed.

    Raises:
        ConfigurationError: a server uses the journal, or it cannot be opened.
    """
    try:
        lock = DirectoryLock(data_dir)
    except OSError as error:
        raise ConfigurationError(f"the journal in {data_dir} cannot be used: {error}") from error
    try:
        store = SqliteStore(data_dir / "journal.db", Durability.STRICT)
        try:
            return store.rebuild(_rebuild)
        finally:
            store.close()
    finally:
        lock.release()


def _rebuild(connection: Any) -> int:
    audit = Audit(connection, VerifyReport(), version=2)
    audit.take([ChainRow(*row) for row in connection.execute(_DELETIONS)])
    differing = _differing(connection, audit.deletions)
    # Ids may have changed places: each gives its own up first.
    for row, _ in differing:
        _set(connection, row, {"generation_id": f"rebuilding {secrets.token_hex(8)}"})
    for row, expected in differing:
        _set(connection, row, {"generation_id": row.name} | expected.columns)
        labels = labels_text(expected.labels)
        _set(connection, row, {"labels": labels})
    changed = len(differing) + _rebuild_labels(connection)
    changed += _drop_nameless_cursors(connection)
    for name, position in cursors.sound_cursors(connection).items():
        cursors.advance(connection, {name: position})
    return changed


_DELETIONS = """
    SELECT position, generation, "offset", kind, payload, NULL, hash, NULL
    FROM entries WHERE writer = 1 AND kind = 7 ORDER BY position
"""


def _differing(
    connection: Any, deletions: dict[int, Deletion]
) -> list[tuple[StoredRow, ExpectedRow]]:
    differing = []
    for values in connection.execute(SELECT_STORED).fetchall():
        row = stored_row(values)
        deletion = deletions.get(row.started_position)
        try:
            expected = expected_row(connection, row.started_position, deletion)
        except ValueError:
            continue
        same = all(row.columns[column] == value for column, value in expected.columns.items())
        if not same or row.labels != expected.labels:
            differing.append((row, expected))
    return differing


def _set(connection: Any, row: StoredRow, columns: dict[str, Any]) -> None:
    names = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(
        f"UPDATE generations SET {names} WHERE writer = 1 AND started_position = ?",  # noqa: S608
        (*columns.values(), row.started_position),
    )


def _drop_nameless_cursors(connection: Any) -> int:
    """Remove cursors whose names are no UTF-8, which nothing asks for; returns their number."""
    nameless = []
    for (raw_name,) in connection.execute("SELECT CAST(name AS BLOB) FROM cursors").fetchall():
        try:
            raw_name.decode()
        except UnicodeDecodeError:
            nameless.append((raw_name,))
    connection.executemany("DELETE FROM cursors WHERE CAST(name AS BLOB) = ?", nameless)
    return len(nameless)


_LABELS = """
    SELECT CAST(name AS BLOB), CAST(value AS BLOB), start_time_ns, CAST(generation_id AS BLOB)
    FROM labels
"""
"""As bytes: texts that somebody else wrote may be no UTF-8."""


def _rebuild_labels(connection: Any) -> int:
    """Fill the index over labels anew, out of the rows; returns the number that differed."""
    before = set(connection.execute(_LABELS))
    connection.execute("DELETE FROM labels")
    for generation_id, start_time_ns, labels in connection.execute(
        "SELECT generation_id, start_time_ns, labels FROM generations WHERE deleted = 0"
    ).fetchall():
        rows = label_index.label_rows(generation_id, start_time_ns, label_index.labels_of(labels))
        connection.executemany(label_index.INSERT, rows)
    after = set(connection.execute(_LABELS))
    return len(before ^ after)
