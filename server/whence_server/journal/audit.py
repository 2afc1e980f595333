"""Holds every column of every table to the entries, and names each difference."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import apsw
from google.protobuf.message import DecodeError

from whence.v1 import call_pb2, deletion_pb2
from whence_server.domain.entries import EntryKind
from whence_server.journal.chain import SECRET_BYTES, ChainRow
from whence_server.journal.cursors import expected_seal
from whence_server.journal.derive import spine_digest
from whence_server.journal.expected import (
    SELECT_STORED,
    Deletion,
    StoredRow,
    expected_row,
    stored_row,
)
from whence_server.journal.findings import Finding, VerifyReport
from whence_server.journal.label_index import label_rows
from whence_server.journal.schema import MIGRATIONS, migrate
from whence_server.journal.sqlite_lookup import spine_of

_WRITER = 1
_FIRST_BOUND_VERSION = 2
_PREPARED = frozenset(
    {
        "table labels",
        "index labels_by_generation",
        "index sqlite_autoindex_labels_1",
    }
)
"""Made before the step to version 2, which may then be cut off."""


class Audit:
    """Compares what is stored with what follows from the entries.

    Entries are given to `take` first, in the chain's order; then `compare` does the rest.

    Attributes:
        deletions: by the position at which the deleted generation starts.
    """

    def __init__(self, connection: Any, report: VerifyReport, version: int) -> None:
        self.deletions: dict[int, Deletion] = {}
        self._connection = connection
        self._report = report
        self._version = version
        self._bound = version >= _FIRST_BOUND_VERSION
        self._last_position = 0
        self._num_unsaid = 0

    def take(self, rows: list[ChainRow]) -> None:
        """Look at the columns of entries that no hash covers."""
        for row in rows:
            self._last_position = row.position
            name = f"position {row.position}"
            if row.payload is not None and row.inner_digest is not None:
                self._found(name, "inner_digest", "a digest", None, table="entries")
            if row.kind == EntryKind.DELETED:
                self._take_deletion(row, name)
            elif row.kind == EntryKind.CALL and row.payload is not None:
                self._take_call(row, row.payload, name)

    def compare(self) -> None:
        """Compare all other tables, each by itself: one that cannot be read hides no other."""
        for stage in (
            self._schema,
            self._writers,
            self._generations,
            self._without_row,
            self._labels_of_nobody,
            self._cursors,
        ):
            guarded(self._report, stage.__name__.strip("_"), stage)
        if self._num_unsaid:
            self._report.notes.append(
                f"{self._num_unsaid} deletions were recorded by an earlier version, which did not "
                "bind the ids of deleted generations: these cannot be held to anything"
            )

    def _take_deletion(self, row: ChainRow, name: str) -> None:
        said = None
        if row.payload:
            try:
                said = deletion_pb2.Deletion.FromString(row.payload)
            except DecodeError:
                self._word("entries", name, "its bytes are no Deletion")
        if said is not None and said.started_position != row.generation:
            self._found(name, "generation", row.generation, said.started_position, table="entries")
        place = said.started_position if said is not None else row.generation
        self.deletions[place] = Deletion(row.position, said)

    def _take_call(self, row: ChainRow, payload: bytes, name: str) -> None:
        try:
            call = call_pb2.Call.FromString(payload)
        except DecodeError:
            self._word("entries", name, "its bytes are no Call")
            return
        found = self._connection.execute(
            "SELECT started_position FROM generations WHERE generation_id = ?",
            (call.generation_id,),
        ).fetchall()
        started = found[0][0] if found else 0
        # A call may be older than the generation of its id.
        if row.generation != started and not (row.generation == 0 and started > row.position):
            self._found(name, "generation", row.generation, started, table="entries")

    # ---- generations ----

    def _generations(self) -> None:
        for values in self._connection.execute(SELECT_STORED):
            self._report.num_generations += 1
            guarded(self._report, "generations", partial(self._generation, values))

    def _generation(self, values: Any) -> None:
        row = stored_row(values)
        deletion = self.deletions.get(row.started_position)
        try:
            expected = expected_row(self._connection, row.started_position, deletion)
        except ValueError as error:
            self._word("generations", row.name, str(error))
            return
        for column, value in expected.columns.items():
            if row.columns[column] != value and (self._bound or deletion is None):
                self._found(row.name, column, row.columns[column], value)
        if row.labels != expected.labels:
            self._found(row.name, "labels", row.labels, expected.labels)
        self._secret(row, deletion)
        if deletion is not None:
            self._deleted(row, deletion)
        if self._bound:
            start_time_ns = expected.columns["start_time_ns"]
            name = expected.columns.get("generation_id", row.name)
            self._labels(name, set(label_rows(name, start_time_ns, expected.labels)))

    def _secret(self, row: StoredRow, deletion: Deletion | None) -> None:
        if deletion is not None and row.secret is not None:
            self._word("generations", row.name, "secret: it is there, though it was deleted")
        elif deletion is None and (row.secret is None or len(row.secret) != SECRET_BYTES):
            self._word("generations", row.name, f"secret: it has not {SECRET_BYTES} bytes")

    def _deleted(self, row: StoredRow, deletion: Deletion) -> None:
        ((num_left,),) = self._connection.execute(
            "SELECT count(*) FROM entries WHERE writer = ? AND generation = ? AND position < ? "
            "AND payload IS NOT NULL",
            (_WRITER, row.started_position, deletion.position),
        )
        if num_left:
            self._word("generations", row.name, f"{num_left} of its entries outlived its deletion")
        if deletion.said is None:
            self._num_unsaid += 1
            return
        entries = spine_of(self._connection, row.started_position, None, deletion.position)
        number, digest = spine_digest(entries)
        if (number, digest) != (deletion.said.num_entries, deletion.said.entries_digest):
            self._word(
                "generations",
                row.name,
                f"its {number} entries are not the {deletion.said.num_entries} that were deleted",
            )

    def _labels(self, name: str, expected: set[tuple[str, str, int, str]]) -> None:
        stored = set(
            self._connection.execute(
                "SELECT name, value, start_time_ns, generation_id FROM labels "
                "WHERE generation_id = ?",
                (name,),
            )
        )
        for row in sorted(stored ^ expected):
            what = "an extra row" if row in stored else "a missing row"
            self._word("labels", name, f"{what}, {row[0]!r} = {row[1]!r} at {row[2]}")

    def _without_row(self) -> None:
        for position, generation_id in self._connection.execute(
            "SELECT e.position, e.generation FROM entries e WHERE e.writer = ? AND e.kind = ? "
            "AND NOT EXISTS (SELECT 1 FROM generations g WHERE g.writer = e.writer "
            "AND g.started_position = e.position)",
            (_WRITER, EntryKind.STARTED),
        ):
            del generation_id
            self._word("entries", f"position {position}", "its generation has no row")
        for (number,) in self._connection.execute(
            "SELECT count(*) FROM entries WHERE writer <> ?", (_WRITER,)
        ):
            if number:
                self._word("entries", "", f"{number} rows belong to an unknown writer")

    def _labels_of_nobody(self) -> None:
        if not self._bound:
            return
        for name, generation_id in self._connection.execute(
            "SELECT l.name, l.generation_id FROM labels l WHERE NOT EXISTS "
            "(SELECT 1 FROM generations g WHERE g.generation_id = l.generation_id)"
        ):
            self._word("labels", str(generation_id), f"{name!r} belongs to no generation")

    # ---- the rest ----

    def _cursors(self) -> None:
        seal = "seal" if self._bound else "NULL"
        for name, position, stored in self._connection.execute(
            f"SELECT name, position, {seal} FROM cursors"  # noqa: S608 - constants only
        ):
            if not 0 <= position <= self._last_position:
                self._word(
                    "cursors",
                    name,
                    f"position {position} lies beyond the newest entry, {self._last_position}",
                )
            elif self._bound and stored != expected_seal(self._connection, name, position):
                self._word("cursors", name, f"position {position} is not the one that was sealed")

    def _writers(self) -> None:
        writers = self._connection.execute("SELECT writer FROM writers").fetchall()
        if writers != [(_WRITER,)]:
            self._word("writers", "", f"there are rows {writers}, and {_WRITER} alone is expected")

    def _schema(self) -> None:
        fresh = apsw.Connection(":memory:")
        migrate(fresh, MIGRATIONS[: max(self._version, 0)])
        expected, stored = dict(_schema_of(fresh)), dict(_schema_of(self._connection))
        fresh.close()
        if not self._bound:
            # The next version's index over labels is filled before the version changes.
            stored = {key: sql for key, sql in stored.items() if key not in _PREPARED}
        for key in sorted(expected.keys() | stored.keys()):
            if stored.get(key) != expected.get(key):
                self._word("schema", key, "is not what this journal's version has")

    def _found(
        self, row: str, column: str, stored: object, expected: object, table: str = "generations"
    ) -> None:
        self._report.add(Finding(table, row, column, stored, expected))

    def _word(self, table: str, row: str, detail: str) -> None:
        self._report.add(Finding(table, row, detail=detail))


def guarded(report: VerifyReport, what: str, stage: Callable[[], None]) -> bool:
    """Run one stage; what it cannot read becomes a finding, and False."""
    try:
        stage()
    except (apsw.Error, UnicodeDecodeError, ValueError, TypeError, OverflowError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        report.add(Finding("database", what.replace("_", " "), detail=f"cannot be read: {first}"))
        return False
    return True


def _schema_of(connection: Any) -> Iterator[tuple[str, tuple[str, str | None]]]:
    for kind, name, table, sql in connection.execute(
        "SELECT type, name, tbl_name, sql FROM sqlite_schema"
    ):
        yield f"{kind} {name}", (table, sql)
