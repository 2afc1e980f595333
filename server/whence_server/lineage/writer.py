"""Writes a training run's record: one entry after the other, whole or not at all."""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from whence.v1.training_pb2 import LineageEntry, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.chain import genesis, next_hash
from whence_server.lineage.framing import framed
from whence_server.lineage.reader import RecordReader

SYNC_INTERVAL_S = 1.0
"""What a power failure may cost at most; a killed process loses nothing that was appended."""


class _End(NamedTuple):
    """Where a record ends; always replaced as a whole, as an interrupt may come at any time."""

    position: int
    head: bytes
    byte: int


class RecordWriter:
    """Appends to a record. One process at a time; used from one thread.

    A process that is forked meanwhile, as data loaders' workers are, does not have the record.

    Attributes:
        path: the record's file.
        training_run_id: whose record it is.
    """

    def __init__(self, path: Path, descriptor: int, reader: RecordReader) -> None:
        """Go on where the reader has come to; see `create` and `resume`."""
        self.path = path
        self.training_run_id = reader.training_run_id
        self._descriptor = descriptor
        self._end = _End(reader.position, reader.head, reader.end_byte)
        self._is_clean = True
        self._synced_at = time.monotonic()
        _open_writers.add(self)

    @property
    def position(self) -> int:
        """Of the newest entry."""
        return self._end.position

    @property
    def head(self) -> bytes:
        """The chain's newest hash."""
        return self._end.head

    @classmethod
    def create(cls, path: Path, started: TrainingEvent) -> "RecordWriter":
        """Begin a new record with its `started` event.

        A file that is there already is taken where it has no whole entry: a process that was killed
        before it had begun left it.

        Raises:
            LineageError: there is a record already, or it cannot be written.
        """
        descriptor = _open(path, os.O_CREAT)
        try:
            reader = RecordReader(path)
            _require_not_begun(path, reader)
            _set_aside(path, descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
        writer = cls(path, descriptor, reader)
        try:
            writer.begin(started)
            _sync_directory(path.parent)
        except BaseException:
            path.unlink(missing_ok=True)
            writer.close()
            raise
        return writer

    @classmethod
    def resume(cls, path: Path) -> "RecordWriter":
        """Open a record to go on with it; there may be nothing in it yet.

        What follows the last whole entry, as a power failure may leave it, is moved to a file of
        its own beside the record, whose name ends in ".torn".

        Raises:
            LineageError: it is not there, not intact, or another process writes it.
        """
        descriptor = _open(path, 0)
        try:
            reader = RecordReader(path)
            while reader.read():
                pass
            _set_aside(path, descriptor, reader.end_byte)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, reader)

    def begin(self, started: TrainingEvent) -> None:
        """Empty the record, and begins it with a `started` event.

        Raises:
            LineageError: it could not be written.
        """
        self.training_run_id = started.started.training_run_id
        self._end = _End(0, genesis(self.training_run_id), 0)
        self._is_clean = False
        self.append(started)
        self.sync()

    def append(self, event: TrainingEvent) -> int:
        """Append an event; it survives the process from here on.

        Returns:
            Its position.

        Raises:
            LineageError: it could not be written; the record ends with the entry before it.
        """
        if not self.training_run_id:
            raise LineageError(f"{self.path} is not an intact record: it has no whole entry")
        payload = event.SerializeToString()
        position, head = self._end.position + 1, next_hash(self._end.head, payload)
        entry = LineageEntry(position=position, event=payload, hash=head)
        octets = framed(entry.SerializeToString())
        self._write(octets, _End(position, head, self._end.byte + len(octets)))
        if time.monotonic() - self._synced_at > SYNC_INTERVAL_S:
            self.sync()
        return position

    def sync(self) -> None:
        """Return once everything appended is on disk.

        Raises:
            LineageError: that failed.
        """
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Let go of the file, everything on disk; may be called again."""
        if self._descriptor < 0:
            return
        try:
            self._clean()
            self.sync()
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            # Said outright: a process that was forked behind Python's back has the lock as well.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def abandon(self) -> None:
        """Let go of the file in a forked process; the parent keeps it, and its lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, octets: bytes, end: _End) -> None:
        self._clean()
        try:
            self._is_clean = False
            written = 0
            while written < len(octets):
                written += os.pwrite(self._descriptor, octets[written:], self._end.byte + written)
            self._end = end
            self._is_clean = True
        except BaseException as error:
            self._settle(end)
            if isinstance(error, OSError):
                raise _unwritable(self.path, error) from error
            raise

    def _settle(self, end: _End) -> None:
        """After an interrupt: an entry that is whole stays, as it may have been read already."""
        try:
            if os.fstat(self._descriptor).st_size == end.byte:
                self._end = end
                self._is_clean = True
            self._clean()
        except (OSError, LineageError):
            pass  # Before anything else is written this is tried again.

    def _clean(self) -> None:
        """Remove what follows the last whole entry.

        Raises:
            LineageError: that failed.
        """
        if self._is_clean:
            return
        try:
            os.ftruncate(self._descriptor, self._end.byte)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._is_clean = True


_open_writers: WeakSet[RecordWriter] = WeakSet()


def _abandon_all() -> None:
    for writer in list(_open_writers):
        writer.abandon()


os.register_at_fork(after_in_child=_abandon_all)


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o644)
    except OSError as error:
        raise LineageError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LineageError(f"{path} is being written by another process") from None
    return descriptor


def _require_not_begun(path: Path, reader: RecordReader) -> None:
    if reader.read():
        raise LineageError(
            f"{path} exists: another run was recorded here; resume it, or choose another directory"
        )


def _sync_directory(path: Path) -> None:
    """Return once a new file's name is on disk too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        os.close(descriptor)


def _set_aside(path: Path, descriptor: int, end_byte: int) -> None:
    """Move the bytes beyond the last whole entry out of the record."""
    try:
        torn = path.read_bytes()[end_byte:]
        if torn:
            path.with_name(f"{path.name}.{end_byte}.torn").write_bytes(torn)
            os.ftruncate(descriptor, end_byte)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> LineageError:
    hint = ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = "; make room and go on from the last checkpoint"
    return LineageError(f"{path} cannot be written: {error.strerror}{hint}")
