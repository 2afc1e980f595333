"""Writer of a training run's record, which appends entries atomically."""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import NamedTuple
from weakref import WeakSet

from whence.v1.training_pb2 import LineageEntry, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.chain import compute_genesis_hash, compute_next_hash
from whence_server.lineage.framing import frame_message
from whence_server.lineage.reader import RecordReader

SYNC_INTERVAL_S = 1.0
"""Seconds of entries that a power failure may lose; a killed process loses none."""


class _End(NamedTuple):
    """End of a record; replaced as a whole, as an interrupt may come at any time."""

    position: int
    head: bytes
    byte: int


class RecordWriter:
    """Writer that appends to a record; for one process at a time, and one thread.

    Forked processes, for example data loader workers, close their copy of the file.

    Attributes:
        path: the record's file.
        training_run_id: id of the recorded run.
    """

    def __init__(self, path: Path, descriptor: int, reader: RecordReader) -> None:
        """Append after the entry that the reader has read last; see `create` and `resume`."""
        self.path = path
        self.training_run_id = reader.training_run_id
        self._descriptor = descriptor
        self._end = _End(reader.position, reader.head, reader.end_byte)
        self._is_clean = True
        self._synced_at = time.monotonic()
        _open_writers.add(self)

    @property
    def position(self) -> int:
        """Position of the newest entry; 0 in an empty record."""
        return self._end.position

    @property
    def head(self) -> bytes:
        """The chain's hash after the newest entry."""
        return self._end.head

    @classmethod
    def create(cls, path: Path, started: TrainingEvent) -> "RecordWriter":
        """Create a record that begins with a `started` event.

        An existing file without a whole entry, which an early kill leaves, is overwritten.

        Raises:
            LineageError: there is a record already, or the file cannot be written.
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
        """Open a record, which may be empty, to append to it.

        Bytes after the last whole entry, as a power failure may leave them, are moved to a file
        beside the record with a name that ends in ".torn".

        Raises:
            LineageError: the record is missing or not intact, or another process writes it.
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
        """Empty the record, and begin it with a `started` event.

        Raises:
            LineageError: the record could not be written.
        """
        self.training_run_id = started.started.training_run_id
        self._end = _End(0, compute_genesis_hash(self.training_run_id), 0)
        self._is_clean = False
        self.append(started)
        self.sync()

    def append(self, event: TrainingEvent) -> int:
        """Append an event, which survives the death of the process once this returns.

        Returns:
            The position of the new entry.

        Raises:
            LineageError: the event could not be written; the record ends with the previous entry.
        """
        if not self.training_run_id:
            raise LineageError(f"{self.path} is not an intact record: it has no whole entry")
        payload = event.SerializeToString()
        position, head = self._end.position + 1, compute_next_hash(self._end.head, payload)
        entry = LineageEntry(position=position, event=payload, hash=head)
        octets = frame_message(entry.SerializeToString())
        self._write(octets, _End(position, head, self._end.byte + len(octets)))
        if time.monotonic() - self._synced_at > SYNC_INTERVAL_S:
            self.sync()
        return position

    def sync(self) -> None:
        """Wait until every appended entry is on disk.

        Raises:
            LineageError: the operating system reports an error.
        """
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise _make_write_error(self.path, error) from error
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and close the file; further calls do nothing."""
        if self._descriptor < 0:
            return
        try:
            self._truncate_to_end()
            self.sync()
        finally:
            descriptor, self._descriptor = self._descriptor, -1
            # Unlock explicitly: a process that was forked by C code holds the lock as well.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def abandon(self) -> None:
        """Close the file in a forked process; the parent keeps it open and locked."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _write(self, octets: bytes, end: _End) -> None:
        self._truncate_to_end()
        try:
            self._is_clean = False
            written = 0
            while written < len(octets):
                written += os.pwrite(self._descriptor, octets[written:], self._end.byte + written)
            self._end = end
            self._is_clean = True
        except BaseException as error:
            self._recover(end)
            if isinstance(error, OSError):
                raise _make_write_error(self.path, error) from error
            raise

    def _recover(self, end: _End) -> None:
        """Restore a valid end after an interrupt; a whole entry stays, as it may have been read."""
        try:
            if os.fstat(self._descriptor).st_size == end.byte:
                self._end = end
                self._is_clean = True
            self._truncate_to_end()
        except (OSError, LineageError):
            pass  # The next write tries again.

    def _truncate_to_end(self) -> None:
        """Remove the bytes after the last whole entry.

        Raises:
            LineageError: the file cannot be truncated.
        """
        if self._is_clean:
            return
        try:
            os.ftruncate(self._descriptor, self._end.byte)
        except OSError as error:
            raise _make_write_error(self.path, error) from error
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
            f"{path} exists: it is the record of another run; resume that run, or choose another "
            "directory"
        )


def _sync_directory(path: Path) -> None:
    """Wait until a new file's directory entry is on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise _make_write_error(path, error) from error
    finally:
        os.close(descriptor)


def _set_aside(path: Path, descriptor: int, end_byte: int) -> None:
    """Move the bytes after the last whole entry to a file of their own."""
    try:
        torn = path.read_bytes()[end_byte:]
        if torn:
            path.with_name(f"{path.name}.{end_byte}.torn").write_bytes(torn)
            os.ftruncate(descriptor, end_byte)
    except OSError as error:
        raise _make_write_error(path, error) from error


def _make_write_error(path: Path, error: OSError) -> LineageError:
    hint = ""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        hint = "; free space, and resume from the last checkpoint"
    return LineageError(f"{path} cannot be written: {error.strerror}{hint}")
