"""Comparison of a journal's tables and writers with those of its version."""

from collections.abc import Iterator
from typing import Any

import apsw

from whence_server.journal.findings import Finding, VerifyReport
from whence_server.journal.schema import MIGRATIONS, migrate

_FIRST_BOUND_VERSION = 2
_UUID_BYTES = 16
_PREPARED = frozenset(
    {
        "table labels",
        "index labels_by_generation",
        "index sqlite_autoindex_labels_1",
    }
)
"""Objects that exist before the migration to version 2, which a crash may interrupt."""


def check_schema(connection: Any, report: VerifyReport, version: int) -> None:
    """Add a finding for each table or index that differs from the schema of a version."""
    fresh = apsw.Connection(":memory:")
    migrate(fresh, MIGRATIONS[: max(version, 0)])
    expected, stored = dict(_read_schema(fresh)), dict(_read_schema(connection))
    fresh.close()
    if version < _FIRST_BOUND_VERSION:
        # The next version's index over labels is filled before the version changes.
        stored = {key: sql for key, sql in stored.items() if key not in _PREPARED}
    for key in sorted(expected.keys() | stored.keys()):
        if stored.get(key) != expected.get(key):
            detail = "differs from the schema of this journal's version"
            report.add(Finding("schema", key, detail=detail))


def check_writers(connection: Any, report: VerifyReport) -> None:
    """Add a finding for each writer without a UUID, and one if writer 1 is missing."""
    writers = connection.execute("SELECT writer, writer_id FROM writers").fetchall()
    for writer, writer_id in writers:
        if len(writer_id) != _UUID_BYTES:
            detail = f"its id has {len(writer_id)} bytes, expected {_UUID_BYTES}"
            report.add(Finding("writers", str(writer), detail=detail))
    if all(writer != 1 for writer, _ in writers):
        report.add(Finding("writers", "", detail="writer 1 is missing"))


def _read_schema(connection: Any) -> Iterator[tuple[str, tuple[str, str | None]]]:
    for kind, name, table, sql in connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    ):
        yield f"{kind} {name}", (table, sql)
