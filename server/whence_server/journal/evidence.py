"""Read-only access to a journal as it lies on disk, without changing a byte of it.

SQLite itself either writes an index beside the write-ahead log or ignores the log (`immutable`).
Here SQLite reads through a VFS of this module, which shows the committed pages of the log in
place of the database's own and supports no writes.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import apsw

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.file_faults import find_file_faults, find_rollback_journal
from whence_server.journal.wal import LogReport, read_log

_FRAME_HEADER_BYTES = 24
# Offset of the header's format versions, and their value in a database without a write-ahead log.
_FORMAT_PLACE, _WITHOUT_LOG = 18, b"\x01\x01"
_IMMUTABLE = 0x2000
_numbers = count()


@dataclass(frozen=True, slots=True)
class Evidence:
    """A journal's database, open for reading, with its write-ahead log.

    Attributes:
        connection: reads the database with the committed pages of the log.
        log: the readable part of the write-ahead log.
        faults: descriptions of the files' faults.
    """

    connection: Any
    log: LogReport
    faults: list[str]


@contextmanager
def open_evidence(data_dir: Path) -> Iterator[Evidence]:
    """Open a journal that no server uses; write, create and remove no file.

    Raises:
        ConfigurationError: there is no journal, a server uses it, or it cannot be read.
    """
    try:
        # SQLite follows a link too, and its write-ahead log lies beside the file itself.
        path = _resolve(data_dir / "journal.db")
        if not path.is_file():
            raise ConfigurationError(f"{data_dir} holds no journal: it has no file journal.db")
        with _keep_servers_out(data_dir):
            log = read_log(_add_suffix(path, "-wal"), _add_suffix(path, "-shm"))
            faults = [*find_rollback_journal(path), *find_file_faults(path, log)]
            with _Files(path, log) as files:
                name = f"whence-evidence-{next(_numbers)}"
                vfs = _ReadingVFS(name, files)
                connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=name)
                try:
                    connection.pragma("temp_store", "MEMORY")
                    yield Evidence(connection, log, faults)
                finally:
                    connection.close()
                    del vfs
    except OSError as error:
        raise ConfigurationError(f"the journal in {data_dir} cannot be read: {error}") from error


@contextmanager
def _keep_servers_out(data_dir: Path) -> Iterator[None]:
    """Hold a shared lock that keeps servers out; without a lock file none has ever run."""
    try:
        # Opening a pipe of that name would otherwise block until somebody writes to it.
        descriptor = os.open(data_dir / "journal.lock", os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        yield
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"a server is using the journal in {data_dir}: stop it, or verify a copy"
            ) from None
        yield
    finally:
        os.close(descriptor)


class _Files:
    """The database's content: pages of the write-ahead log before those of the file."""

    def __init__(self, path: Path, log: LogReport) -> None:
        self._log = log
        self._database = _open(path)
        self._log_file = _open(_add_suffix(path, "-wal")) if log.pages else -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._database)
        if self._log_file >= 0:
            os.close(self._log_file)

    @property
    def size(self) -> int:
        if self._log.num_pages:
            return self._log.num_pages * self._log.page_size
        return os.fstat(self._database).st_size

    def read(self, amount: int, offset: int) -> bytes:
        data = b""
        while amount and (piece := self._read_piece(amount, offset)):
            data += piece
            amount -= len(piece)
            offset += len(piece)
        return data

    def _read_piece(self, amount: int, offset: int) -> bytes:
        """Read up to the end of one page."""
        page_size = self._log.page_size
        if not self._log.pages:
            return os.pread(self._database, amount, offset)
        page, within = divmod(offset, page_size)
        amount = min(amount, page_size - within)
        place = self._log.pages.get(page + 1)
        if place is None:
            return os.pread(self._database, amount, offset)
        return os.pread(self._log_file, amount, place + _FRAME_HEADER_BYTES + within)


class _ReadingVFS(apsw.VFS):
    """SQLite VFS that opens one database, read-only."""

    def __init__(self, name: str, files: _Files) -> None:
        super().__init__(name, "")
        self._files = files

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802 - SQLite's name
        if name is None or not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            raise apsw.CantOpenError("only the main database can be opened")
        flags[1] = apsw.SQLITE_OPEN_READONLY
        return _ReadingFile(self._files)

    def xAccess(self, path: str, flags: int) -> bool:  # noqa: N802
        del path, flags
        return False

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        raise apsw.ReadOnlyError(
            f"the journal is open read-only: {name} is not removed (sync {sync})"
        )


class _ReadingFile:
    """SQLite file that looks like a database without a write-ahead log."""

    def __init__(self, files: _Files) -> None:
        self._files = files

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        data = self._files.read(amount, offset)
        start = _FORMAT_PLACE - offset
        if 0 <= start <= len(data) - len(_WITHOUT_LOG):
            data = data[:start] + _WITHOUT_LOG + data[start + len(_WITHOUT_LOG) :]
        return data

    def xFileSize(self) -> int:  # noqa: N802
        return self._files.size

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return _IMMUTABLE

    def xSectorSize(self) -> int:  # noqa: N802
        return 4096

    def xLock(self, level: int) -> None:  # noqa: N802
        """Do nothing: no other process writes."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Do nothing: no other process writes."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        del op, pointer
        return False

    def xClose(self) -> None:  # noqa: N802
        """Do nothing: `_Files` closes the files."""

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        raise apsw.ReadOnlyError(
            f"the journal is open read-only: no write of {len(data)} bytes at {offset}"
        )

    def xTruncate(self, size: int) -> None:  # noqa: N802
        raise apsw.ReadOnlyError(f"the journal is open read-only: no truncation to {size} bytes")

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Do nothing: nothing was written."""


def _open(path: Path) -> int:
    # Reading changes the access time; only the file's owner may prevent that.
    try:
        return os.open(path, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # links that lead in a circle
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _add_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
