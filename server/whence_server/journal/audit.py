"""Comparison of every table's columns with the entries from which they follow."""

from collections.abc import Callable
from functools import partial
from typing import Any

import apsw
from google.protobuf.message import DecodeError

from whence.v1 import call_pb2, deletion_pb2
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import JournalError, JournalUnwritableError
from whence_server.journal.chain import SECRET_BYTES, ChainRow, Origin
from whence_server.journal.cursors import read_expected_seal
from whence_server.journal.derive import EntriesDigest
from whence_server.journal.expected import (
    Deletion,
    StoredRow,
    derive_row,
    parse_stored_row,
    walk_stored_rows,
)
from whence_server.journal.findings import Finding, VerifyReport
from whence_server.journal.label_index import make_label_rows
from whence_server.journal.origin import read_origin
from whence_server.journal.schema import (
    CURSORS_OF_WRITERS_VERSION,
    PARENTS_VERSION,
    PASSAGES_VERSION,
)
from whence_server.journal.search.passages import find_orphans
from whence_server.journal.sql_lookup import collect_entry_digests
from whence_server.journal.value_index import OWNERS, PARENTS, ValueIndex

_FIRST_BOUND_VERSION = 2
_FIRST_VERSIONS = {OWNERS: 3, PARENTS: PARENTS_VERSION}


class Audit:
    """Comparison of the stored rows with those that the entries imply.

    Call `begin`, then `take` with all entries in the chain's order, then `compare`, and
    `compare_shared` for one log of a database.

    Attributes:
        deletions: DELETED entries, by the position of the deleted generation's STARTED entry.
    """

    def __init__(
        self, connection: Any, report: VerifyReport, version: int, writer: int = 1
    ) -> None:
        self.deletions: dict[int, Deletion] = {}
        self._connection = connection
        self._report = report
        self._writer = writer
        self._version = version
        self._bound = version >= _FIRST_BOUND_VERSION
        self._last_position = 0
        self._num_unbound = 0
        self._origin: Origin | None = None
        self._removal: Origin | None = None
        """The last entry that was removed, according to the newest DELETED entry about it."""

    def begin(self) -> None:
        """Read the place at which the journal begins; call it before the other methods."""
        self._origin = read_origin(self._connection, self._writer)

    def take(self, rows: list[ChainRow]) -> None:
        """Check the columns of entries that the chain's hash does not cover."""
        for row in rows:
            self._last_position = row.position
            name = f"position {row.position}"
            if row.payload is not None and row.inner_digest is not None:
                self._add_difference(name, "inner_digest", "a digest", None, table="entries")
            if row.kind == EntryKind.DELETED:
                self._take_deletion(row, name)
            elif row.kind == EntryKind.CALL and row.payload is not None:
                self._take_call(row, row.payload, name)
            elif row.kind == EntryKind.AUDIT and row.generation:
                # A deletion of that generation would destroy it.
                self._add_difference(name, "generation", row.generation, 0, table="entries")

    def compare(self) -> None:
        """Check all other tables; an unreadable table does not prevent the check of the others."""
        for name, stage in (
            ("origins", self._check_origin),
            ("generations", self._check_generations),
            ("missing rows", self._check_missing_rows),
            ("cursors", self._check_cursors),
        ):
            run_stage(self._report, name, stage)
        if self._num_unbound:
            self._report.notes.append(
                f"{self._num_unbound} deletions were recorded by an earlier version, which did not "
                "record the ids of deleted generations: these ids cannot be verified"
            )

    def compare_shared(self) -> None:
        """Check the rows that belong to no log."""
        for name, stage in (
            ("entries of unknown writers", self._check_unknown_writers),
            ("labels without a generation", self._check_orphan_labels),
            ("owners without a generation", partial(self._check_orphans, OWNERS)),
            ("parents without a generation", partial(self._check_orphans, PARENTS)),
            ("passages without a generation", self._check_orphan_passages),
        ):
            run_stage(self._report, name, stage)

    def _take_deletion(self, row: ChainRow, name: str) -> None:
        message = None
        if row.payload:
            try:
                message = deletion_pb2.Deletion.FromString(row.payload)
            except DecodeError:
                self._add_detail("entries", name, "the payload is not a whence.v1.Deletion")
        if message is not None and message.cause == deletion_pb2.DELETION_CAUSE_REMOVAL:
            self._removal = Origin(message.removed_position, message.removed_hash)
            return
        if message is not None and message.started_position != row.generation:
            self._add_difference(
                name, "generation", row.generation, message.started_position, table="entries"
            )
        place = message.started_position if message is not None else row.generation
        self.deletions[place] = Deletion(row.position, message)

    def _take_call(self, row: ChainRow, payload: bytes, name: str) -> None:
        try:
            call = call_pb2.Call.FromString(payload)
        except DecodeError:
            self._add_detail("entries", name, "the payload is not a whence.v1.Call")
            return
        found = self._connection.execute(
            "SELECT started_position FROM generations WHERE writer = ? AND generation_id = ?",
            (self._writer, call.generation_id),
        ).fetchall()
        started = found[0][0] if found else 0
        if not found and self._is_removed(row.generation):
            return
        # A call may be older than the generation of its id.
        if row.generation != started and not (row.generation == 0 and started > row.position):
            self._add_difference(name, "generation", row.generation, started, table="entries")

    def _is_removed(self, position: int) -> bool:
        """Return whether an entry was removed."""
        return self._origin is not None and 0 < position <= self._origin.position

    # ---- generations ----

    def _check_generations(self) -> None:
        for values in walk_stored_rows(self._connection, self._writer):
            self._report.num_generations += 1
            run_stage(self._report, "generations", partial(self._check_generation, values))

    def _check_generation(self, values: Any) -> None:
        row = parse_stored_row(values)
        deletion = self.deletions.get(row.started_position)
        try:
            expected = derive_row(self._connection, self._writer, row.started_position, deletion)
        except ValueError as error:
            self._add_detail("generations", row.name, str(error))
            return
        for column, value in expected.columns.items():
            if row.columns[column] != value and (self._bound or deletion is None):
                self._add_difference(row.name, column, row.columns[column], value)
        if row.labels != expected.labels:
            self._add_difference(row.name, "labels", row.labels, expected.labels)
        self._check_secret(row, deletion)
        if deletion is not None:
            self._check_deleted(row, deletion)
        if self._bound:
            start_time_ns = expected.columns["start_time_ns"]
            name = expected.columns.get("generation_id", row.name)
            self._check_labels(name, set(make_label_rows(name, start_time_ns, expected.labels)))
            self._check_value(OWNERS, name, start_time_ns, expected.owner)
            self._check_value(PARENTS, name, start_time_ns, expected.parent)

    def _check_secret(self, row: StoredRow, deletion: Deletion | None) -> None:
        if deletion is not None and row.secret is not None:
            self._add_detail(
                "generations", row.name, "secret: still stored although the generation was deleted"
            )
        elif deletion is None and (row.secret is None or len(row.secret) != SECRET_BYTES):
            self._add_detail("generations", row.name, f"secret: does not have {SECRET_BYTES} bytes")

    def _check_deleted(self, row: StoredRow, deletion: Deletion) -> None:
        ((num_left,),) = self._connection.execute(
            "SELECT count(*) FROM entries WHERE writer = ? AND generation = ? AND position < ? "
            "AND payload IS NOT NULL",
            (self._writer, row.started_position, deletion.position),
        )
        if num_left:
            self._add_detail(
                "generations",
                row.name,
                f"{num_left} of its entries still have content after its deletion",
            )
        if deletion.message is None:
            self._num_unbound += 1
            return
        if self._is_removed(row.started_position):
            return
        entries = collect_entry_digests(
            self._connection, self._writer, row.started_position, None, deletion.position
        )
        found = EntriesDigest(entries)
        number, digest = found.number, found.compute()
        if (number, digest) != (deletion.message.num_entries, deletion.message.entries_digest):
            self._add_detail(
                "generations",
                row.name,
                f"its {number} entries are not the {deletion.message.num_entries} deleted ones",
            )

    def _check_labels(self, name: str, expected: set[tuple[str, str, int, str]]) -> None:
        stored = {
            (_decode(label), _decode(value), start, name)
            for label, value, start in self._connection.execute(
                "SELECT CAST(name AS BLOB), CAST(value AS BLOB), start_time_ns FROM labels "
                "WHERE generation_id = ?",
                (name,),
            )
        }
        for row in sorted(stored ^ expected):
            what = "an extra row" if row in stored else "a missing row"
            self._add_detail("labels", name, f"{what}, {row[0]!r} = {row[1]!r} at {row[2]}")

    def _check_value(
        self, values: ValueIndex, name: str, start_time_ns: int, expected: str
    ) -> None:
        if self._version < _FIRST_VERSIONS[values]:
            return
        stored = values.read(self._connection, name)
        if stored != ([(expected, start_time_ns)] if expected else []):
            self._report.add(Finding(values.table, name, values.name, stored, expected))

    def _check_missing_rows(self) -> None:
        for position, generation_id in self._connection.execute(
            "SELECT e.position, e.generation FROM entries e WHERE e.writer = ? AND e.kind = ? "
            "AND NOT EXISTS (SELECT 1 FROM generations g WHERE g.writer = e.writer "
            "AND g.started_position = e.position)",
            (self._writer, EntryKind.STARTED),
        ):
            del generation_id
            self._add_detail(
                "entries", f"position {position}", "its generation has no row in generations"
            )

    def _check_unknown_writers(self) -> None:
        for (number,) in self._connection.execute(
            "SELECT count(*) FROM entries e WHERE NOT EXISTS "
            "(SELECT 1 FROM writers w WHERE w.writer = e.writer)"
        ):
            if number:
                self._add_detail("entries", "", f"{number} rows belong to an unknown writer")

    def _check_orphan_labels(self) -> None:
        if not self._bound:
            return
        for name, generation_id in self._connection.execute(
            "SELECT CAST(l.name AS BLOB), CAST(l.generation_id AS BLOB) FROM labels l "
            "WHERE NOT EXISTS "
            "(SELECT 1 FROM generations g WHERE g.generation_id = l.generation_id)"
        ):
            self._add_detail(
                "labels",
                _decode(generation_id),
                f"label {_decode(name)!r} belongs to no generation",
            )

    def _check_orphans(self, values: ValueIndex) -> None:
        if self._version < _FIRST_VERSIONS[values]:
            return
        for generation_id in values.list_orphans(self._connection):
            self._add_detail(values.table, _decode(generation_id), "belongs to no generation")

    def _check_orphan_passages(self) -> None:
        """Check that deleted generations cannot be searched."""
        if self._version < PASSAGES_VERSION:
            return
        for writer, generation in find_orphans(self._connection):
            place = f"log {writer}, position {generation}"
            self._add_detail("passages", place, "belong to a generation that is deleted or unknown")

    # ---- the rest ----

    def _check_cursors(self) -> None:
        seal = "seal" if self._bound else "NULL"
        own = "WHERE writer = ?" if self._version >= CURSORS_OF_WRITERS_VERSION else "WHERE ? = 1"
        for raw_name, position, stored in self._connection.execute(
            f"SELECT CAST(name AS BLOB), position, {seal} FROM cursors {own}",  # noqa: S608
            (self._writer,),
        ):
            name = raw_name.decode(errors="replace")
            if not 0 <= position <= self._last_position:
                self._add_detail(
                    "cursors",
                    name,
                    f"position {position} is after the newest entry, {self._last_position}",
                )
            elif self._bound and stored != read_expected_seal(
                self._connection, self._writer, name, position
            ):
                self._add_detail("cursors", name, f"position {position} does not match its seal")

    def _check_origin(self) -> None:
        """Check that the journal begins where its newest removal says."""
        if self._origin != self._removal:
            self._report.add(Finding("origins", "", "position", self._origin, self._removal))
        if self._origin is not None:
            self._report.notes.append(
                f"entries 1 to {self._origin.position} were removed, after their content had been "
                "deleted: the chain is verified from there on"
            )

    def _add_difference(
        self, row: str, column: str, stored: object, expected: object, table: str = "generations"
    ) -> None:
        self._report.add(Finding(table, row, column, stored, expected))

    def _add_detail(self, table: str, row: str, detail: str) -> None:
        self._report.add(Finding(table, row, detail=detail))


_UNREADABLE = (
    apsw.Error,
    JournalError,
    UnicodeDecodeError,
    ValueError,
    TypeError,
    OverflowError,
)


def run_stage(report: VerifyReport, name: str, stage: Callable[[], None]) -> bool:
    """Run one check; return False, and add a finding, if it cannot read the database."""
    try:
        stage()
    except JournalUnwritableError:
        raise  # The database is away: nothing is found out about its content.
    except _UNREADABLE as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        report.add(Finding("database", name, detail=f"cannot be read: {first}"))
        return False
    return True


def _decode(stored: bytes) -> str:
    return stored.decode(errors="replace")
