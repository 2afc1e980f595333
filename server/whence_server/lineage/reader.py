"""Reader of a training run's record that verifies the hash chain."""

import fcntl
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.training_pb2 import LineageEntry, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.chain import compute_check, compute_genesis_hash, compute_next_hash
from whence_server.lineage.framing import FramingError, iterate_frames

RECORD_NAME = "lineage.binpb"
"""Name of the record's file, which lies in the directory of the model."""

_CHUNK_BYTES = 1 << 20


def is_begun(path: Path) -> bool:
    """Return whether a record has an entry; a process killed early leaves a file without entries.

    Raises:
        LineageError: the file cannot be read, or is not a record.
    """
    return path.is_file() and bool(RecordReader(path).read(max_bytes=1))


class RecordedEvent(NamedTuple):
    """One verified event of a run, with its place in the record."""

    position: int
    """Number of the entry, from 1 without gaps."""
    event: TrainingEvent
    hash: bytes
    """The chain's hash after this event."""
    begin_byte: int
    """Offset in the file of the entry, which begins with its length."""
    end_byte: int
    """Offset in the file of the next entry."""
    check: int
    """Check value of the event; see `chain.compute_check`."""


class RecordReader:
    """Cursor on a record that returns each event once, in order.

    A record that is being written may end in an incomplete entry; it is returned once it is whole.

    Args:
        path: the record's file.

    Attributes:
        training_run_id: the run's id; empty before the first event was read.
        position: position of the last event that was read; 0 before the first.
        head: the chain's hash after the last event that was read.
        end_byte: offset in the file of the next entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.training_run_id = ""
        self.position = 0
        self.head = b""
        self.end_byte = 0

    def read(self, max_bytes: int = _CHUNK_BYTES) -> list[RecordedEvent]:
        """Read the next whole entries, about `max_bytes` of them; an empty list at the end.

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
            events = self._parse(buffer)
            if events or len(buffer) < max_bytes:
                return events
            # One entry is larger than the buffer.
            max_bytes *= 4

    def read_all(self) -> list[RecordedEvent]:
        """Read all whole entries that are in the file now.

        Raises:
            LineageError: the file cannot be read, or is not an intact record.
        """
        events: list[RecordedEvent] = []
        while batch := self.read():
            events += batch
        return events

    def _parse(self, buffer: bytes) -> list[RecordedEvent]:
        events = []
        begin = self.end_byte
        try:
            for frame in iterate_frames(buffer):
                entry = LineageEntry.FromString(frame.message)
                events.append(self._verify(entry, begin + frame.end))
                self.end_byte = begin + frame.end
        except (FramingError, DecodeError) as error:
            raise self._make_error(
                f"the bytes from {self.end_byte} on are no entry: {error}"
            ) from None
        return events

    def _verify(self, entry: LineageEntry, end_byte: int) -> RecordedEvent:
        event = TrainingEvent.FromString(entry.event)
        if self.position == 0:
            if event.WhichOneof("event") != "started":
                raise self._make_error("it is not the start of a run, as a record's first entry is")
            self.training_run_id = event.started.training_run_id
            self.head = compute_genesis_hash(self.training_run_id)
        if entry.position != self.position + 1:
            raise self._make_error(
                f"its position is {entry.position}, and {self.position + 1} was expected"
            )
        if compute_next_hash(self.head, entry.event) != entry.hash:
            raise self._make_error(
                "its hash does not follow from its content and the entry before it"
            )
        self.position, self.head = entry.position, entry.hash
        check = compute_check(entry.event)
        return RecordedEvent(self.position, event, self.head, self.end_byte, end_byte, check)

    def _make_error(self, detail: str) -> LineageError:
        return LineageError(
            f"{self.path} is not an intact record: entry {self.position + 1}: {detail}"
        )


def is_being_written(path: Path) -> bool:
    """Return whether a process holds the lock under which a record is written.

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
