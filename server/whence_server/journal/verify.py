"""Verification of a journal that no server uses: files, chain, columns and statements."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.audit import Audit, run_stage
from whence_server.journal.chain import ChainReport, ChainRow, ChainWalk
from whence_server.journal.evidence import Evidence, open_evidence
from whence_server.journal.findings import Finding, VerifyReport
from whence_server.journal.origin import read_origin
from whence_server.journal.schema import MIGRATIONS
from whence_server.journal.schema_check import check_schema, check_writers
from whence_server.journal.sealing.content_check import ContentCheck, KeysToVerify
from whence_server.journal.sql_reads import CHAIN
from whence_server.journal.statement_check import StatementCheck
from whence_server.journal.tree_verify import report_missing_log, verify_tree

_CHUNK = 1_024
_MAX_MESSAGES = 100


def verify_journal(
    data_dir: Path, keys: KeysToVerify | None = None, known: Sequence[bytes] = ()
) -> VerifyReport:
    """Verify a journal on disk with its write-ahead log; change nothing.

    Args:
        data_dir: the journal's directory.
        keys: keys of the encrypted generations; None to leave their content encrypted.
        known: checkpoints of its transparency log that were kept elsewhere.

    Raises:
        ConfigurationError: there is no journal, a server uses it, it cannot be read, a newer
            version wrote it, the keys are those of another journal, or a known checkpoint is
            malformed.
    """
    with open_evidence(data_dir) as evidence:
        return verify_evidence(evidence, keys, known)


def verify_evidence(
    evidence: Evidence, keys: KeysToVerify | None = None, known: Sequence[bytes] = ()
) -> VerifyReport:
    """Verify an opened journal; raise as `verify_journal` does."""
    report = VerifyReport(notes=list(evidence.log.notes))
    for fault in evidence.log.faults:
        report.add(Finding("journal", "write-ahead log", detail=fault))
    for fault in evidence.faults:
        report.add(Finding("journal", "files", detail=fault))
    connection = evidence.connection
    version = [0, 0]

    def look() -> None:
        version[0] = connection.pragma("user_version")
        version[1] = connection.execute("SELECT count(*) FROM sqlite_schema").get

    if not run_stage(report, "header", look):
        return report
    number, num_objects = version
    if number > len(MIGRATIONS):
        raise ConfigurationError(
            f"the journal has schema version {number}, and this program supports up to "
            f"{len(MIGRATIONS)}: verify it with the newer version that wrote it"
        )
    if not num_objects:
        report_missing_log(report, known)
        return report
    run_stage(report, "pages", lambda: _check_integrity(connection, report))
    run_stage(report, "schema", lambda: check_schema(connection, report, number))
    run_stage(report, "writers", lambda: check_writers(connection, report))
    if keys is not None:
        run_stage(report, "writers", lambda: check_keys(connection, keys))
    verify_logs(connection, report, number, keys)
    run_stage(report, "transparency log", lambda: verify_tree(connection, report, known))
    return report


def verify_logs(
    connection: Any, report: VerifyReport, version: int, keys: KeysToVerify | None = None
) -> None:
    """Verify every log of a database.

    Args:
        connection: reads the database.
        report: takes the findings.
        version: version of the database's schema.
        keys: keys of the encrypted generations; None to leave their content encrypted.
    """
    statements = StatementCheck(connection, report)
    content = ContentCheck(report, keys, statements.check)
    writers = [1]

    def look() -> None:
        found = connection.execute("SELECT writer FROM writers ORDER BY writer").fetchall()
        writers[:] = [writer for (writer,) in found] or writers

    run_stage(report, "logs", look)
    for writer in writers:
        audit = Audit(connection, report, version, writer)
        run_stage(report, "origins", audit.begin)
        content.begin()
        run_stage(report, "statements", partial(statements.begin, writer))
        take = partial(_take, report, audit, content, statements)
        run_stage(report, "entries", partial(_verify_chain, connection, writer, report, take))
        audit.compare()
    audit.compare_shared()
    content.end()
    statements.end()


def _take(
    report: VerifyReport,
    audit: Audit,
    content: ContentCheck,
    statements: StatementCheck,
    rows: list[ChainRow],
) -> None:
    audit.take(rows)
    run_stage(report, "content", lambda: content.take(rows))
    run_stage(report, "statements", lambda: statements.take(rows))


def _check_integrity(connection: Any, report: VerifyReport) -> None:
    """Run SQLite's integrity check of its structures and indexes."""
    for (message,) in connection.execute(f"PRAGMA integrity_check({_MAX_MESSAGES})"):
        if message != "ok":
            for line in message.splitlines():
                report.add(Finding("database", "", detail=line))


def walk_chain(
    connection: Any, writer: int = 1, also: Callable[[list[ChainRow]], None] = lambda _: None
) -> Iterator[ChainReport]:
    """Walk a writer's chain, and call `also` with all entries, including those after a break.

    Yields:
        The result so far, after each thousand entries and at the end.
    """
    ((writer_id,),) = connection.execute(
        "SELECT writer_id FROM writers WHERE writer = ?", (writer,)
    )
    walk = ChainWalk(writer_id, read_origin(connection, writer))
    last = 0
    while rows := connection.execute(CHAIN, (writer, last, _CHUNK)).fetchall():
        entries = [ChainRow(*row) for row in rows]
        last = entries[-1].position
        if not walk.broken:
            walk.take(entries)
        yield walk.report()
        also(entries)
    yield walk.report()


def check_keys(connection: Any, keys: KeysToVerify) -> None:
    """Check that keys are those of a database's journal, which is named by its first log.

    Raises:
        ConfigurationError: they are those of another one.
    """
    for (writer_id,) in connection.execute("SELECT writer_id FROM writers WHERE writer = 1"):
        keys.check_journal(writer_id)


def _verify_chain(
    connection: Any, writer: int, report: VerifyReport, take: Callable[[list[ChainRow]], None]
) -> None:
    found = ChainReport(0, "")
    try:
        for so_far in walk_chain(connection, writer, take):
            found = so_far
    except BaseException:
        report.chain_intact = False
        raise
    finally:
        report.num_entries += found.num_entries
        report.heads.append(found.head)
        report.chain_intact = report.chain_intact and found.intact
        if found.broken_position is not None:
            where = f"broken at entry {found.broken_position}"
            report.add(Finding("entries", where, detail=found.detail))
