"""Streams that outlive their connection, without I/O: which call comes next, what is new.

The clients feed in what arrives and how a call ended, and make the calls asked for.
"""

import time
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

from whence.backoff import Backoff
from whence.errors import InternalError, WhenceError
from whence.v1.generation_pb2 import (
    GenerateRequest,
    GenerateResponse,
    GenerationEvent,
    ResumeGenerationRequest,
    ResumeGenerationResponse,
)
from whence.v1.trace_pb2 import WatchGenerationsRequest, WatchGenerationsResponse
from whence.v1.training_pb2 import WatchTrainingRunRequest, WatchTrainingRunResponse

Request: TypeAlias = (
    GenerateRequest | ResumeGenerationRequest | WatchGenerationsRequest | WatchTrainingRunRequest
)
Response: TypeAlias = (
    GenerateResponse
    | ResumeGenerationResponse
    | WatchGenerationsResponse
    | WatchTrainingRunResponse
)

Item_co = TypeVar("Item_co", covariant=True)


class Resumable(Protocol[Item_co]):
    """A stream over as many calls as it takes."""

    @property
    def complete(self) -> bool:
        """Whether nothing more will come."""

    def next_call(self) -> tuple[Request, float | None]:
        """The call to make now, and its timeout in seconds."""

    def receive(self, response: Response) -> Item_co | None:
        """What is new in a response; None if nothing is."""

    def broke_off(self, error: WhenceError | None) -> float:
        """Seconds to wait before the next call, after one that ended with or without an error.

        An end without one may have been the end of it all: `complete` says so then.

        Raises:
            WhenceError: the stream cannot go on.
        """


class GenerationStream:
    """One generation's events, each exactly once and in order.

    Until its first event arrived the same Generate call is repeated, which its generation
    id makes idempotent; from then on ResumeGeneration goes on after the last offset seen.
    """

    def __init__(
        self,
        request: GenerateRequest,
        backoff: Backoff,
        *,
        timeout_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generation_id = request.generation_id
        self._request = request
        self._backoff = backoff
        self._clock = clock
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._last_offset = 0
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether `finished` was seen."""
        return self._complete

    def next_call(self) -> tuple[GenerateRequest | ResumeGenerationRequest, float | None]:
        """Generate until anything arrived, then ResumeGeneration."""
        if self._last_offset == 0:
            return self._request, self._left_s()
        resume = ResumeGenerationRequest(
            generation_id=self.generation_id, after_offset=self._last_offset
        )
        return resume, self._left_s()

    def receive(self, response: Response) -> GenerationEvent | None:
        """The event, without what was seen before.

        Raises:
            InternalError: events are missing in between.
        """
        if not isinstance(response, GenerateResponse | ResumeGenerationResponse):
            raise TypeError(f"a generation brings no {type(response).__name__}")
        event = response.event
        if event.last_offset <= self._last_offset:
            return None
        if event.first_offset > self._last_offset + 1:
            raise InternalError(
                f"generation {self.generation_id!r}: event {event.first_offset} came after "
                f"{self._last_offset}; those in between are missing",
                reason="EVENTS_MISSING",
            )
        fresh = _without_first(event, self._last_offset + 1 - event.first_offset)
        self._backoff.arrived()
        self._last_offset = event.last_offset
        self._complete = event.HasField("finished")
        return fresh

    def broke_off(self, error: WhenceError | None) -> float:
        """Wait for the connection, though never beyond the deadline."""
        delay_s = self._backoff.delay_s(error)
        left_s = self._left_s()
        return delay_s if left_s is None else min(delay_s, left_s)

    def _left_s(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - self._clock())


class WatchStream:
    """Every generation's events, resumed after the last position seen.

    What happens between a break and the first event of a watch without a position cannot
    be known; give `after_position` to miss nothing from the start.
    """

    complete = False

    def __init__(self, request: WatchGenerationsRequest, backoff: Backoff) -> None:
        self._request = request
        self._backoff = backoff

    def next_call(self) -> tuple[WatchGenerationsRequest, None]:
        """The same watch, from the last position on; without a timeout."""
        return self._request, None

    def receive(self, response: Response) -> WatchGenerationsResponse | None:
        """The response as it is."""
        if not isinstance(response, WatchGenerationsResponse):
            raise TypeError(f"a watch brings no {type(response).__name__}")
        self._backoff.arrived()
        self._request.after_position = response.position
        return response

    def broke_off(self, error: WhenceError | None) -> float:
        """Wait for the connection."""
        return self._backoff.delay_s(error)


class TrainingRunStream:
    """A training run's events, resumed after the last position seen, until the run has ended.

    The server ends the call well with the run alone; when it closes itself, with an error.
    """

    def __init__(self, request: WatchTrainingRunRequest, backoff: Backoff) -> None:
        self._request = request
        self._backoff = backoff
        self._complete = False

    @property
    def complete(self) -> bool:
        """Whether the run has ended."""
        return self._complete

    def next_call(self) -> tuple[WatchTrainingRunRequest, None]:
        """The same watch, from the last position on; without a timeout."""
        return self._request, None

    def receive(self, response: Response) -> WatchTrainingRunResponse | None:
        """The response as it is."""
        if not isinstance(response, WatchTrainingRunResponse):
            raise TypeError(f"a training run brings no {type(response).__name__}")
        self._backoff.arrived()
        self._request.after_position = response.last_position
        return response

    def broke_off(self, error: WhenceError | None) -> float:
        """Wait for the connection, unless that was the run's end."""
        self._complete = error is None
        return 0.0 if error is None else self._backoff.delay_s(error)


def _without_first(event: GenerationEvent, num_seen: int) -> GenerationEvent:
    """The event less its first `num_seen` offsets."""
    if num_seen == 0:
        return event
    kind = event.WhichOneof("event")
    num_offsets = event.last_offset - event.first_offset + 1
    fresh = GenerationEvent()
    fresh.CopyFrom(event)
    batch = fresh.prompt_steps if kind == "prompt_steps" else fresh.steps
    if kind not in {"prompt_steps", "steps"} or len(batch.steps) != num_offsets:
        raise InternalError(
            f"a {kind} event over the offsets {event.first_offset} to {event.last_offset} "
            "cannot be taken up in its middle",
            reason="EVENT_INDIVISIBLE",
        )
    fresh.first_offset += num_seen
    del batch.steps[:num_seen]
    return fresh
