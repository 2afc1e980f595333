"""Writes a training run's record: one entry after the other, whole or not at all."""

import errno
import fcntl
import os
import time
from pathlib import Path

from whence.v1.training_pb2 import LineageEntry, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.chain import genesis, next_hash
from whence_server.lineage.framing import framed
from whence_server.lineage.reader import RecordedEvent, RecordReader

SYNC_INTERVAL_S = 1.0
"""What a power failure may cost at most; a killed process loses nothing that was appended."""


class RecordWriter:
    """Appends to a record. One process at a time; used from one thread.

    Attributes:
        path: the record's file.
        training_run_id: whose record it is.
        position: of the newest entry.
        head: the chain's newest hash.
    """

    def __init__(self, path: Path, descriptor: int, reader: RecordReader) -> None:
        """Goes on where the reader has come to; see `create` and `resume`."""
        self.path = path
        self.training_run_id = reader.training_run_id
        self.position = reader.position
        self.head = reader.head
        self._descriptor = descriptor
        self._end_byte = reader.end_byte
        self._synced_at = time.monotonic()

    @classmethod
    def create(cls, path: Path, started: TrainingEvent) -> "RecordWriter":
        """Begins a new record with its `started` event.

        Raises:
            LineageError: there is one already, or it cannot be written.
        """
        run_id = started.started.training_run_id
        descriptor = _open(path, os.O_CREAT | os.O_EXCL)
        reader = RecordReader(path)
        reader.training_run_id, reader.head = run_id, genesis(run_id)
        writer = cls(path, descriptor, reader)
        try:
            writer.append(started)
            writer.sync()
        except LineageError:
            writer.close()
            path.unlink(missing_ok=True)
            raise
        return writer

    @classmethod
    def resume(cls, path: Path) -> tuple["RecordWriter", list[RecordedEvent]]:
        """Opens a record to go on with it; gives what is in it.

        What follows the last whole entry, as a power failure may leave it, is moved to a file of
        its own beside the record, whose name ends in ".torn".

        Raises:
            LineageError: it is not there, not intact, or another process writes it.
        """
        descriptor = _open(path, 0)
        try:
            reader = RecordReader(path)
            events = reader.read_all()
            _require_start(path, events)
            _set_aside(path, descriptor, reader.end_byte)
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, reader), events

    def append(self, event: TrainingEvent) -> int:
        """Appends an event; it survives the process from here on.

        Returns:
            Its position.

        Raises:
            LineageError: it could not be written; the record ends with the entry before it.
        """
        payload = event.SerializeToString()
        head = next_hash(self.head, payload)
        entry = LineageEntry(position=self.position + 1, event=payload, hash=head)
        self._write(framed(entry.SerializeToString()))
        self.position, self.head = self.position + 1, head
        if time.monotonic() - self._synced_at > SYNC_INTERVAL_S:
            self.sync()
        return self.position

    def sync(self) -> None:
        """Returns once everything appended is on disk.

        Raises:
            LineageError: that failed.
        """
        try:
            os.fdatasync(self._descriptor)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Lets go of the file, everything on disk."""
        try:
            self.sync()
        finally:
            os.close(self._descriptor)

    def _write(self, octets: bytes) -> None:
        begin = self._end_byte
        written = 0
        try:
            while written < len(octets):
                written += os.pwrite(self._descriptor, octets[written:], begin + written)
        except OSError as error:
            os.ftruncate(self._descriptor, begin)
            raise _unwritable(self.path, error) from error
        self._end_byte = begin + written


def _open(path: Path, flags: int) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | flags, 0o644)
    except FileExistsError:
        raise LineageError(
            f"{path} exists: another run was recorded here; resume it, or choose another directory"
        ) from None
    except OSError as error:
        raise LineageError(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise LineageError(f"{path} is being written by another process") from None
    return descriptor


def _require_start(path: Path, events: list[RecordedEvent]) -> None:
    if not events:
        raise LineageError(f"{path} is not an intact record: it has no whole entry")


def _set_aside(path: Path, descriptor: int, end_byte: int) -> None:
    """Moves the bytes beyond the last whole entry out of the record."""
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
