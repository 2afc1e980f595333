"""A journal opened as evidence: read as it lies there, and not one byte of it changed.

SQLite itself cannot do it. It reads a write-ahead log only beside an index that it writes, or
not at all (`immutable`). Here it gets the database through a file system of ours, which shows
the committed pages of the log in place of the database's own, and can do nothing but read.
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
from whence_server.journal.file_faults import beside_faults, file_faults
from whence_server.journal.wal import LogReport, read_log

_FRAME_HEADER_BYTES = 24
# Where the database's header says that it is used with a write-ahead log, and what it says else.
_FORMAT_PLACE, _WITHOUT_LOG = 18, b"\x01\x01"
_IMMUTABLE = 0x2000
_numbers = count()


@dataclass(frozen=True, slots=True)
class Evidence:
    """A journal's database, open for reading, and its write-ahead log.

    Attributes:
        connection: reads the database with the committed pages of the log.
        log: as far as the log can be read.
        faults: of the files themselves, in words.
    """

    connection: Any
    log: LogReport
    faults: list[str]


@contextmanager
def open_evidence(data_dir: Path) -> Iterator[Evidence]:
    """Open a journal that no server uses; nothing in the directory is written, made or removed.

    Raises:
        ConfigurationError: there is no journal, a server uses it, or it cannot be read.
    """
    try:
        # SQLite follows a link too, and its write-ahead log lies beside the file itself.
        path = _resolved(data_dir / "journal.db")
        if not path.is_file():
            raise ConfigurationError(f"{data_dir} holds no journal")
        with _unused(data_dir):
            log = read_log(_beside(path, "-wal"), _beside(path, "-shm"))
            faults = [*beside_faults(path), *file_faults(path, log)]
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
def _unused(data_dir: Path) -> Iterator[None]:
    """Keep servers out; where there is no lock file, no server has ever been in."""
    try:
        # A pipe of that name would be waited for, until somebody writes to it.
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
    """The database's bytes as a reader of both files sees them."""

    def __init__(self, path: Path, log: LogReport) -> None:
        self._log = log
        self._database = _open(path)
        self._log_file = _open(_beside(path, "-wal")) if log.pages else -1

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
        while amount and (piece := self._piece(amount, offset)):
            data += piece
            amount -= len(piece)
            offset += len(piece)
        return data

    def _piece(self, amount: int, offset: int) -> bytes:
        """Read up to the end of a page."""
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
    """Opens the one database that it was made for."""

    def __init__(self, name: str, files: _Files) -> None:
        super().__init__(name, "")
        self._files = files

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802 - SQLite's name
        if name is None or not flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            raise apsw.CantOpenError("only the database itself is opened")
        flags[1] = apsw.SQLITE_OPEN_READONLY
        return _ReadingFile(self._files)

    def xAccess(self, path: str, flags: int) -> bool:  # noqa: N802
        del path, flags
        return False

    def xDelete(self, name: str, sync: bool) -> None:  # noqa: N802
        raise apsw.ReadOnlyError(f"evidence is not changed: {name} (sync {sync}) stays")


class _ReadingFile:
    """The database as SQLite reads it: like one that never had a write-ahead log."""

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
        """Nobody else writes."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """Nobody else writes."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        del op, pointer
        return False

    def xClose(self) -> None:  # noqa: N802
        """The files are closed by whoever opened them."""

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        raise apsw.ReadOnlyError(f"{len(data)} bytes at {offset}: evidence is not changed")

    def xTruncate(self, size: int) -> None:  # noqa: N802
        raise apsw.ReadOnlyError(f"to {size} bytes: evidence is not changed")

    def xSync(self, flags: int) -> None:  # noqa: N802
        """Nothing was written."""


def _open(path: Path) -> int:
    # Reading marks the time of access, which only the owner can prevent.
    try:
        return os.open(path, os.O_RDONLY | os.O_NOATIME)
    except PermissionError:
        return os.open(path, os.O_RDONLY)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # links that lead in a circle
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
