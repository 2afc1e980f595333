"""Follows a run's record as it grows, whichever process writes it, until the run has ended."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import NamedTuple

from whence.v1 import training_pb2
from whence_server.domain.errors import (
    FieldViolation,
    InvalidRequestError,
    LineageError,
    TrainingRunNotFoundError,
)
from whence_server.lineage.reader import RecordedEvent, RecordReader
from whence_server.lineage.run import TrainingRun

_log = logging.getLogger(__name__)

_POLL_S = 0.2
# Well below the 4 MiB that a gRPC client takes by default.
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_EVENTS = 1_000


class WatchStart(NamedTuple):
    """Where a watch begins."""

    training_run_id: str
    reader: RecordReader
    after_position: int
    """Entries up to it are skipped."""
    known_position: int
    """How far the run was read when the watch began."""
    ended: bool
    """And whether it had ended there."""


def watch_start(run: TrainingRun, after_position: int | None) -> WatchStart:
    """Where to begin in a run's record; None is with what is recorded from now on.

    Raises:
        InvalidRequestError: the record has no such position.
    """
    newest = run.num_entries
    after = newest if after_position is None else after_position
    if after > newest:
        raise InvalidRequestError(
            FieldViolation("after_position", f"is {after}; the record has {newest} entries so far")
        )
    return WatchStart(run.id, run.reader_after(after), after, newest, run.ended)


async def watched(start: WatchStart) -> AsyncGenerator[bytes, None]:
    """Serialised WatchTrainingRunResponse messages, until the run has ended.

    Raises:
        TrainingRunNotFoundError: the record is gone, or is not intact any more.
    """
    ended = start.ended
    while True:
        try:
            events = await asyncio.to_thread(start.reader.read)
        except LineageError as error:
            _log.warning("a training run is not followed any further: %s", error)
            raise TrainingRunNotFoundError(start.training_run_id) from error
        for message in _messages([e for e in events if e.position > start.after_position]):
            yield message
        for recorded in events:
            if recorded.position > start.known_position:
                ended = _ended_after(recorded.event, ended=ended)
        if not events:
            if ended:
                return
            await asyncio.sleep(_POLL_S)


def _ended_after(event: training_pb2.TrainingEvent, *, ended: bool) -> bool:
    kind = event.WhichOneof("event")
    if kind == "attempt_finished":
        return event.attempt_finished.state not in (
            training_pb2.TRAINING_STATE_UNSPECIFIED,
            training_pb2.TRAINING_STATE_RUNNING,
        )
    return ended and kind != "attempt_started"


def _messages(events: list[RecordedEvent]) -> Iterator[bytes]:
    response = training_pb2.WatchTrainingRunResponse()
    num_bytes = 0
    for recorded in events:
        size = recorded.event.ByteSize()
        full = num_bytes + size > _MAX_MESSAGE_BYTES or len(response.events) == _MAX_EVENTS
        if full and response.events:
            yield response.SerializeToString()
            response, num_bytes = training_pb2.WatchTrainingRunResponse(), 0
        response.events.append(recorded.event)
        response.last_position = recorded.position
        num_bytes += size
    if response.events:
        yield response.SerializeToString()
