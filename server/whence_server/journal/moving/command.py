"""The commands `whence-server migrate`, `backup` and `restore`."""

import argparse
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.journal_url import JournalUrl
from whence_server.domain.journal_url import parse_place as parse_any_place
from whence_server.journal.findings import VerifyReport
from whence_server.journal.moving.directory_target import check_free, write_directory
from whence_server.journal.moving.sources import Source, open_directory
from whence_server.journal.open_store import import_postgres
from whence_server.journal.verify import verify_journal


def run(parsed: argparse.Namespace) -> int:
    """Run one of the commands; return the exit status."""
    commands = {"migrate": _migrate, "backup": _back_up, "restore": _restore}
    return commands[parsed.command](parsed)


def _migrate(parsed: argparse.Namespace) -> int:
    """Copy a journal that no server uses; return the exit status."""
    return _copy(parsed, exclusive=True)


def _back_up(parsed: argparse.Namespace) -> int:
    """Copy a journal that servers may be using; return the exit status."""
    if isinstance(parse_place(parsed.target), JournalUrl):
        raise ConfigurationError("--to: a backup is written to a directory")
    return _copy(parsed, exclusive=False)


def _restore(parsed: argparse.Namespace) -> int:
    """Verify a backup, then copy it; return the exit status."""
    place = parse_place(parsed.source)
    if isinstance(place, JournalUrl):
        raise ConfigurationError("--from: a backup is a directory")
    report = verify_journal(place)
    if not report.intact:
        return _finish(report, "the backup is not intact, and nothing was restored")
    # No server uses a backup, which may lie where nothing can be written.
    return _copy(parsed, exclusive=False)


def parse_place(text: str) -> Path | JournalUrl:
    """Parse a directory, or the URL of a database.

    Raises:
        ConfigurationError: it is a malformed URL; the message does not repeat it.
    """
    try:
        return parse_any_place(text)
    except ValueError as error:
        raise ConfigurationError(f"the place of a journal is malformed: {error}") from None


def _copy(parsed: argparse.Namespace, *, exclusive: bool) -> int:
    place, target = parse_place(parsed.source), parse_place(parsed.target)
    if isinstance(target, Path):
        check_free(target)
    with _open(place, exclusive=exclusive) as source:
        is_sealed = source.has_sealed()
        if isinstance(target, Path):
            vocabularies = place if isinstance(place, Path) else None
            report = write_directory(source, target, vocabularies)
        else:
            import_postgres()
            from whence_server.journal.postgres.copies import write_database

            report = write_database(source, target.text)
    status = _finish(report, "the journal is not intact, and nothing was written")
    if status == 0 and is_sealed:
        print(
            "its content is encrypted, and its keys are not copied: `whence-server key copy` "
            "copies them (docs/encryption.md, Backups)"
        )
    return status


def _open(place: Path | JournalUrl, *, exclusive: bool) -> AbstractContextManager[Source]:
    if isinstance(place, Path):
        return open_directory(place, exclusive=exclusive)
    import_postgres()
    from whence_server.journal.postgres.copies import open_database

    return open_database(place.text, exclusive=exclusive)


def _finish(report: VerifyReport, failure: str) -> int:
    for finding in report.findings:
        print(finding, file=sys.stderr)
    if not report.intact:
        print(f"{failure}: {report.num_findings} findings", file=sys.stderr)
        return 1
    print(
        f"{report.num_entries} entries of {report.num_generations} generations, intact; "
        f"the chain's head is {report.head}"
    )
    return 0
