"""Following a training record as any process appends to it, until the run has ended."""

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
# Well below the 4 MiB that a gRPC client accepts by default.
_MAX_MESSAGE_BYTES = 1 << 20
_MAX_EVENTS = 1_000


class WatchStart(NamedTuple):
    """Start of a watch."""

    training_run_id: str
    reader: RecordReader
    after_position: int
    """Position up to which entries are skipped."""
    known_position: int
    """Position up to which the run was read when the watch began."""
    ended: bool
    """True if the run had ended at `known_position`."""


def start_watch(run: TrainingRun, after_position: int | None) -> WatchStart:
    """Start a watch after a position of a run's record; None skips all present entries.

    Raises:
        InvalidRequestError: the record has no such position.
    """
    newest = run.num_entries
    after = newest if after_position is None else after_position
    if after > newest:
        raise InvalidRequestError(
            FieldViolation("after_position", f"is {after}; the record has {newest} entries")
        )
    return WatchStart(run.id, run.create_reader_after(after), after, newest, run.ended)


async def watch_run(
    start: WatchStart,
) -> AsyncGenerator[training_pb2.WatchTrainingRunResponse, None]:
    """Yield the messages of a watch, until the run has ended.

    Raises:
        TrainingRunNotFoundError: the record was removed or damaged.
    """
    ended = start.ended
    while True:
        try:
            events = await asyncio.to_thread(start.reader.read)
        except LineageError as error:
            _log.warning("the watch of a training run ends, its record is unreadable: %s", error)
            raise TrainingRunNotFoundError(start.training_run_id) from error
        for message in _batch_events([e for e in events if e.position > start.after_position]):
            yield message
        for recorded in events:
            if recorded.position > start.known_position:
                ended = _has_ended(recorded.event, ended=ended)
        if not events:
            if ended:
                return
            await asyncio.sleep(_POLL_S)


def _has_ended(event: training_pb2.TrainingEvent, *, ended: bool) -> bool:
    kind = event.WhichOneof("event")
    if kind == "attempt_finished":
        return event.attempt_finished.state not in (
            training_pb2.TRAINING_STATE_UNSPECIFIED,
            training_pb2.TRAINING_STATE_RUNNING,
        )
    return ended and kind != "attempt_started"


def _batch_events(
    events: list[RecordedEvent],
) -> Iterator[training_pb2.WatchTrainingRunResponse]:
    response = training_pb2.WatchTrainingRunResponse()
    num_bytes = 0
    for recorded in events:
        size = recorded.event.ByteSize()
        full = num_bytes + size > _MAX_MESSAGE_BYTES or len(response.events) == _MAX_EVENTS
        if full and response.events:
            yield response
            response, num_bytes = training_pb2.WatchTrainingRunResponse(), 0
        response.events.append(recorded.event)
        response.last_position = recorded.position
        num_bytes += size
    if response.events:
        yield response
