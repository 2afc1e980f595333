"""Reads a training run's record, from its beginning or on from where one was; verifies it."""

import fcntl
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.training_pb2 import LineageEntry, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.chain import check_of, genesis, next_hash
from whence_server.lineage.framing import FramingError, frames

RECORD_NAME = "lineage.binpb"
"""The record's file, beside the model that it is about."""

_CHUNK_BYTES = 1 << 20


def is_begun(path: Path) -> bool:
    """Whether there is a record: a process that was killed early may leave a file without entries.

    Raises:
        LineageError: it cannot be read, or is no record.
    """
    return path.is_file() and bool(RecordReader(path).read(max_bytes=1))


class RecordedEvent(NamedTuple):
    """One event of a run, its place verified."""

    position: int
    """From 1 without gaps."""
    event: TrainingEvent
    hash: bytes
    """The chain's hash after it."""
    begin_byte: int
    """Where its entry begins in the file, its length included."""
    end_byte: int
    """Where the next one begins."""
    check: int
    """See `chain.check_of`."""


class RecordReader:
    """A cursor on a record: gives each event once, in order, as far as they are whole.

    A record that is being written may end in half an entry: that is given once it is whole.

    Args:
        path: the record's file.

    Attributes:
        training_run_id: empty before the first event was read.
        position: of the last event that was read; 0 before the first.
        head: the chain's hash after it.
        end_byte: where the next entry begins in the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.training_run_id = ""
        self.position = 0
        self.head = b""
        self.end_byte = 0

    def read(self, max_bytes: int = _CHUNK_BYTES) -> list[RecordedEvent]:
        """The next whole entries, about `max_bytes` of them; none where there are no more.

        Raises:
            LineageError: the file cannot be read, or is not an intact record.
        """
        while True:
            try:
                with self.path.open("rb") as file:
                    file.seek(self.end_byte)
                    buffer = file.read(max_bytes)
            except OSError as error:
                raise LineageError(f"{self.path} cannot be read: {error.strerror}") from error
            events = self._take(buffer)
            if events or len(buffer) < max_bytes:
                return events
            # One entry is larger than the buffer.
            max_bytes *= 4

    def read_all(self) -> list[RecordedEvent]:
        """All whole entries that are there now.

        Raises:
            LineageError: as `read`.
        """
        events: list[RecordedEvent] = []
        while batch := self.read():
            events += batch
        return events

    def _take(self, buffer: bytes) -> list[RecordedEvent]:
        events = []
        begin = self.end_byte
        try:
            for frame in frames(buffer):
                entry = LineageEntry.FromString(frame.message)
                events.append(self._verified(entry, begin + frame.end))
                self.end_byte = begin + frame.end
        except (FramingError, DecodeError) as error:
            raise self._broken(f"the bytes from {self.end_byte} on are no entry: {error}") from None
        return events

    def _verified(self, entry: LineageEntry, end_byte: int) -> RecordedEvent:
        event = TrainingEvent.FromString(entry.event)
        if self.position == 0:
            if event.WhichOneof("event") != "started":
                raise self._broken("it does not begin with the run's start")
            self.training_run_id = event.started.training_run_id
            self.head = genesis(self.training_run_id)
        if entry.position != self.position + 1:
            raise self._broken(f"it has position {entry.position}")
        if next_hash(self.head, entry.event) != entry.hash:
            raise self._broken("its hash does not follow from its content and the entry before it")
        self.position, self.head = entry.position, entry.hash
        check = check_of(entry.event)
        return RecordedEvent(self.position, event, self.head, self.end_byte, end_byte, check)

    def _broken(self, detail: str) -> LineageError:
        return LineageError(
            f"{self.path} is not an intact record: entry {self.position + 1}: {detail}"
        )


def is_being_written(path: Path) -> bool:
    """Whether a process holds the lock under which a record is written.

    Raises:
        LineageError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    except OSError as error:
        raise LineageError(f"{path} cannot be read: {error.strerror}") from error
    return False
