"""A copy of a journal in a directory: complete and verified, or not there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.findings import VerifyReport
from whence_server.journal.lock import DirectoryLock
from whence_server.journal.moving.sources import Source
from whence_server.journal.moving.tables import list_tables
from whence_server.journal.privacy import make_directory, make_private
from whence_server.journal.schema import migrate
from whence_server.journal.verify import verify_journal
from whence_server.journal.vocabularies import FOLDER

# SQLite reads a log that lies beside a database, whichever database the log came from.
_NAMES = ("journal.db", "journal.db-wal", "journal.db-shm", "journal.db-journal")


def check_free(data_dir: Path) -> None:
    """Refuse a directory that holds a journal, or files that one left.

    An empty file is no journal: a server with its journal in PostgreSQL leaves one.

    Raises:
        ConfigurationError: it does.
    """
    for name in _NAMES:
        path = data_dir / name
        if path.exists() and path.stat().st_size:
            raise ConfigurationError(
                f"{data_dir} holds a journal already, in the file {name}: choose an empty or a new "
                "directory"
            )


def write_directory(source: Source, data_dir: Path, vocabularies: Path | None) -> VerifyReport:
    """Write a journal to a directory and verify it; without findings, it appears there.

    Args:
        source: the journal.
        data_dir: the directory, with no journal in it.
        vocabularies: data directory whose vocabularies are copied too.

    Returns:
        The result of the verification. With findings, nothing is left in the directory.

    Raises:
        ConfigurationError: the directory holds a journal or cannot be written.
    """
    check_free(data_dir)
    try:
        make_directory(data_dir)
        with _locked(data_dir):
            # In the same file system: the last step is a rename.
            partial = Path(tempfile.mkdtemp(dir=data_dir, prefix=".partial-"))
            try:
                _write_database(source, partial / "journal.db")
                report = verify_journal(partial)
                if report.intact:
                    _publish(partial, data_dir, vocabularies)
                return report
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except (OSError, apsw.Error) as error:
        raise ConfigurationError(f"{data_dir} cannot be written: {error}") from error


@contextmanager
def _locked(data_dir: Path) -> Iterator[None]:
    """Keep servers out of a directory; leave no lock file that was not there before."""
    path = data_dir / "journal.lock"
    is_new = not path.exists()
    lock = DirectoryLock(data_dir)
    try:
        yield
    finally:
        if is_new:
            path.unlink(missing_ok=True)
        lock.release()


def _write_database(source: Source, path: Path) -> None:
    make_private(path.parent)
    connection = apsw.Connection(str(path))
    try:
        connection.pragma("synchronous", "OFF")
        # As in a server's own database: its free pages can be given back while a server runs.
        connection.pragma("auto_vacuum", "INCREMENTAL")
        migrate(connection)
        with connection:
            for table in list_tables():
                connection.executemany(table.make_insert(), source.read(table))
    finally:
        connection.close()


def _publish(partial: Path, data_dir: Path, vocabularies: Path | None) -> None:
    copied = partial / FOLDER
    if vocabularies is not None and (vocabularies / FOLDER).is_dir():
        shutil.copytree(vocabularies / FOLDER, copied)
    database = partial / "journal.db"
    _sync(database)
    check_free(data_dir)
    database.rename(data_dir / "journal.db")
    if copied.is_dir():
        shutil.copytree(copied, data_dir / FOLDER, dirs_exist_ok=True)
    _sync(data_dir)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
