"""Rebuilding the columns beside the entries from the entries, which are not changed."""

import secrets
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError
from whence_server.journal import cursors, label_index
from whence_server.journal.audit import Audit
from whence_server.journal.chain import ChainRow
from whence_server.journal.expected import (
    Deletion,
    ExpectedRow,
    StoredRow,
    derive_row,
    encode_labels,
    parse_stored_row,
    walk_stored_rows,
)
from whence_server.journal.findings import VerifyReport
from whence_server.journal.lock import DirectoryLock
from whence_server.journal.rows import Durability
from whence_server.journal.schema import MIGRATIONS
from whence_server.journal.sqlite_store import SqliteStore
from whence_server.journal.value_index import OWNERS, PARENTS, ValueIndex


def rebuild_journal(data_dir: Path) -> int:
    """Rebuild the rows that differ from their entries, in one transaction.

    The chain has to be intact: the entries are the only source. The id of a generation that
    an earlier version deleted is in no entry and is not changed.

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
            return store.rebuild(rebuild_rows)
        finally:
            store.close()
    finally:
        lock.release()


def rebuild_rows(connection: Any) -> int:
    """Rebuild the differing rows of all logs in the caller's transaction; return their number."""
    writers = connection.execute("SELECT writer FROM writers ORDER BY writer").fetchall()
    deletions = {writer: _read_deletions(connection, writer) for (writer,) in writers}
    differing = [
        (writer, row, expected)
        for writer, found in deletions.items()
        for row, expected in _find_differing(connection, writer, found)
    ]
    # Two rows may have exchanged their ids: each first gets a temporary one.
    for writer, row, _ in differing:
        _set(connection, writer, row, {"generation_id": f"rebuilding {secrets.token_hex(8)}"})
    for writer, row, expected in differing:
        _set(connection, writer, row, {"generation_id": row.name} | expected.columns)
        labels = encode_labels(expected.labels)
        _set(connection, writer, row, {"labels": labels})
    changed = len(differing) + _rebuild_labels(connection)
    for values in (OWNERS, PARENTS):
        changed += _rebuild_values(connection, values, deletions)
    changed += _drop_nameless_cursors(connection)
    for writer in deletions:
        for name, position in cursors.load_cursors(connection, writer).items():
            cursors.advance(connection, writer, {name: position})
    return changed


_DELETIONS = """
    SELECT position, generation, "offset", kind, payload, NULL, hash, NULL
    FROM entries WHERE writer = ? AND kind = 7 ORDER BY position
"""


def _read_deletions(connection: Any, writer: int) -> dict[int, Deletion]:
    audit = Audit(connection, VerifyReport(), len(MIGRATIONS), writer)
    audit.take([ChainRow(*row) for row in connection.execute(_DELETIONS, (writer,)).fetchall()])
    return audit.deletions


def _find_differing(
    connection: Any, writer: int, deletions: dict[int, Deletion]
) -> list[tuple[StoredRow, ExpectedRow]]:
    differing = []
    for values in list(walk_stored_rows(connection, writer)):
        row = parse_stored_row(values)
        deletion = deletions.get(row.started_position)
        try:
            expected = derive_row(connection, writer, row.started_position, deletion)
        except ValueError:
            continue
        same = all(row.columns[column] == value for column, value in expected.columns.items())
        if not same or row.labels != expected.labels:
            differing.append((row, expected))
    return differing


def _set(connection: Any, writer: int, row: StoredRow, columns: dict[str, Any]) -> None:
    names = ", ".join(f"{name} = ?" for name in columns)
    connection.execute(
        f"UPDATE generations SET {names} WHERE writer = ? AND started_position = ?",  # noqa: S608
        (*columns.values(), writer, row.started_position),
    )


def _drop_nameless_cursors(connection: Any) -> int:
    """Remove cursors whose names are not UTF-8, which nothing uses; return their number."""
    nameless = []
    for (raw_name,) in connection.execute("SELECT CAST(name AS BLOB) FROM cursors").fetchall():
        try:
            raw_name.decode()
        except UnicodeDecodeError:
            nameless.append((raw_name,))
    connection.executemany("DELETE FROM cursors WHERE CAST(name AS BLOB) = ?", nameless)
    return len(nameless)


def _rebuild_values(
    connection: Any, values: ValueIndex, deletions: dict[int, dict[int, Deletion]]
) -> int:
    """Rebuild an index over values from the entries; return the number of changed rows."""
    before = values.read_all(connection)
    connection.execute(f"DELETE FROM {values.table}")  # noqa: S608 - a constant
    for writer, position in connection.execute(
        "SELECT writer, started_position FROM generations WHERE deleted = 0"
    ).fetchall():
        deletion = deletions.get(writer, {}).get(position)
        try:
            expected = derive_row(connection, writer, position, deletion)
        except ValueError:
            continue
        value = getattr(expected, values.name)
        if value:
            columns = expected.columns
            row = (value, columns["start_time_ns"], columns["generation_id"])
            connection.execute(values.insert, row)
    return len(before ^ values.read_all(connection))


_LABELS = """
    SELECT CAST(name AS BLOB), CAST(value AS BLOB), start_time_ns, CAST(generation_id AS BLOB)
    FROM labels
"""
"""All labels as bytes, because damaged texts may not be UTF-8."""


def _rebuild_labels(connection: Any) -> int:
    """Rebuild the index over labels from the rows; return the number of changed rows."""
    before = set(connection.execute(_LABELS))
    connection.execute("DELETE FROM labels")
    for generation_id, start_time_ns, labels in connection.execute(
        "SELECT generation_id, start_time_ns, labels FROM generations WHERE deleted = 0"
    ).fetchall():
        rows = label_index.make_label_rows(
            generation_id, start_time_ns, label_index.parse_labels(labels)
        )
        connection.executemany(label_index.INSERT, rows)
    after = set(connection.execute(_LABELS))
    return len(before ^ after)
