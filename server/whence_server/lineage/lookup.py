"""Reading of single entries of a record by their byte offsets."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.training_pb2 import LineageEntry, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.chain import compute_check
from whence_server.lineage.framing import FramingError, iterate_frames


class Place(NamedTuple):
    """Byte range [begin_byte, end_byte) of one entry in a record, its length prefix included."""

    begin_byte: int
    end_byte: int
    check: int
    """Expected check value of the event; see `chain.compute_check`."""


def read_events_at(path: Path, places: Iterable[Place]) -> Iterator[TrainingEvent]:
    """Read the events at these places, one by one.

    Raises:
        LineageError: the file cannot be read, or another entry is at a place.
    """
    try:
        with path.open("rb") as file:
            for place in places:
                file.seek(place.begin_byte)
                yield _parse_event(path, place, file.read(place.end_byte - place.begin_byte))
    except OSError as error:
        raise LineageError(f"{path} cannot be read: {error.strerror}") from error


def read_event_at(path: Path, place: Place) -> TrainingEvent:
    """Read the event at one place.

    Raises:
        LineageError: the file cannot be read, or another entry is at the place.
    """
    (event,) = read_events_at(path, [place])
    return event


def _parse_event(path: Path, place: Place, octets: bytes) -> TrainingEvent:
    try:
        frame = next(iterate_frames(octets), None)
        if frame is not None and frame.end == len(octets):
            event = LineageEntry.FromString(frame.message).event
            if compute_check(event) == place.check:
                return TrainingEvent.FromString(event)
    except (FramingError, DecodeError):
        pass
    raise LineageError(
        f"{path} is not the record that was read before: the entry at byte {place.begin_byte} is "
        "gone, or has changed"
    )
