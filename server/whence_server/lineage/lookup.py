"""Single entries of a record that was read before, by where they lie in the file."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.training_pb2 import LineageEntry, TrainingEvent
from whence_server.domain.errors import LineageError
from whence_server.lineage.chain import check_of
from whence_server.lineage.framing import FramingError, frames


class Place(NamedTuple):
    """The bytes [begin_byte, end_byte) of a record: one entry with its length."""

    begin_byte: int
    end_byte: int
    check: int
    """What its event has to be like: see `chain.check_of`."""


def events_at(path: Path, places: Iterable[Place]) -> Iterator[TrainingEvent]:
    """The events at these places, read one by one.

    Raises:
        LineageError: the file cannot be read, or has not that entry there any more.
    """
    try:
        with path.open("rb") as file:
            for place in places:
                file.seek(place.begin_byte)
                yield _event(path, place, file.read(place.end_byte - place.begin_byte))
    except OSError as error:
        raise LineageError(f"{path} cannot be read: {error.strerror}") from error


def event_at(path: Path, place: Place) -> TrainingEvent:
    """The event at one place.

    Raises:
        LineageError: as `events_at`.
    """
    (event,) = events_at(path, [place])
    return event


def _event(path: Path, place: Place, octets: bytes) -> TrainingEvent:
    try:
        frame = next(frames(octets), None)
        if frame is not None and frame.end == len(octets):
            event = LineageEntry.FromString(frame.message).event
            if check_of(event) == place.check:
                return TrainingEvent.FromString(event)
    except (FramingError, DecodeError):
        pass
    raise LineageError(
        f"{path} is not the record that was read before: the entry at byte {place.begin_byte} is "
        "gone, or has changed"
    )
