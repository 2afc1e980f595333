"""Logic of streams that resume after a broken connection, without I/O.

The clients make the calls, and pass on responses and the ends of calls.
"""

import time
from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

from whence.backoff import Backoff
from whence.deadline import Deadline
from whence.errors import InternalError, WhenceError
from whence.v1.explain_pb2 import ExplainRequest, ExplainResponse
from whence.v1.generation_pb2 import (
    ForkGenerationRequest,
    ForkGenerationResponse,
    GenerateRequest,
    GenerateResponse,
    GenerationEvent,
    ResumeGenerationRequest,
    ResumeGenerationResponse,
)
from whence.v1.model_pb2 import GetVocabularyRequest, GetVocabularyResponse
from whence.v1.proof_pb2 import ExportBundleRequest, ExportBundleResponse
from whence.v1.trace_pb2 import WatchGenerationsRequest, WatchGenerationsResponse
from whence.v1.training_pb2 import (
    ReadDocumentRequest,
    ReadDocumentResponse,
    TraceEmergenceRequest,
    TraceEmergenceResponse,
    WatchTrainingRunRequest,
    WatchTrainingRunResponse,
)
from whence.v1.verification_pb2 import VerifyGenerationRequest, VerifyGenerationResponse

Request: TypeAlias = (
    GenerateRequest
    | ForkGenerationRequest
    | ResumeGenerationRequest
    | WatchGenerationsRequest
    | WatchTrainingRunRequest
    | GetVocabularyRequest
    | ReadDocumentRequest
    | TraceEmergenceRequest
    | ExportBundleRequest
    | VerifyGenerationRequest
    | ExplainRequest
)
Response: TypeAlias = (
    GenerateResponse
    | ForkGenerationResponse
    | ResumeGenerationResponse
    | WatchGenerationsResponse
    | WatchTrainingRunResponse
    | GetVocabularyResponse
    | ReadDocumentResponse
    | TraceEmergenceResponse
    | ExportBundleResponse
    | VerifyGenerationResponse
    | ExplainResponse
)

Item_co = TypeVar("Item_co", covariant=True)


class Resumable(Protocol[Item_co]):
    """A stream over as many calls as needed."""

    @property
    def complete(self) -> bool:
        """True if the stream has ended."""

    def prepare_call(self) -> tuple[Request, float | None]:
        """Return the request of the next call, and its timeout in seconds."""

    def receive(self, response: Response) -> Item_co | None:
        """Return the new item of a response; None if it has none."""

    def handle_break(self, error: WhenceError | None) -> float:
        """Return the seconds to wait before the next call, after one ended.

        After an end without an error, `complete` may be true: no call follows.

        Raises:
            WhenceError: the stream cannot continue.
        """


class GenerationStream:
    """Stream of one generation's events, each exactly once and in order.

    Before the first event the same Generate or ForkGeneration call is repeated, which its
    generation id makes idempotent; then ResumeGeneration continues after the last offset.

    Attributes:
        lacks_content: True once an event came from the record, whose content policy keeps content
            out of it: the server no longer held the caller's own stream.
    """

    def __init__(
        self,
        request: GenerateRequest | ForkGenerationRequest,
        backoff: Backoff,
        *,
        timeout_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.generation_id = request.generation_id
        self._request = request
        self._backoff = backoff
        self._deadline = Deadline(timeout_s, clock=clock)
        self._last_offset = 0
        self._complete = False
        self.lacks_content = False

    @property
    def complete(self) -> bool:
        """True after the event `finished`."""
        return self._complete

    def prepare_call(
        self,
    ) -> tuple[GenerateRequest | ForkGenerationRequest | ResumeGenerationRequest, float | None]:
        """Return the request that starts it before the first event, then ResumeGeneration."""
        if self._last_offset == 0:
            return self._request, self._deadline.left_s
        resume = ResumeGenerationRequest(
            generation_id=self.generation_id, after_offset=self._last_offset
        )
        return resume, self._deadline.left_s

    def receive(self, response: Response) -> GenerationEvent | None:
        """Return the event without the offsets that were received before.

        `finished` is returned whatever its offset: if the server died before its newest entries
        were on disk, the record ends before the last offset that was received.

        Progress repeats an offset, and is always returned.

        Raises:
            InternalError: events before it are missing.
        """
        kinds = GenerateResponse | ForkGenerationResponse | ResumeGenerationResponse
        if not isinstance(response, kinds):
            raise make_unreadable_error(response)
        if isinstance(response, ResumeGenerationResponse) and response.content:
            self.lacks_content = True
        event = response.event
        if event.HasField("progress"):
            self._backoff.restart()
            return event
        if event.HasField("finished") and event.first_offset <= self._last_offset:
            return self._end(event)
        if event.last_offset <= self._last_offset:
            return None
        if event.first_offset > self._last_offset + 1:
            raise InternalError(
                f"generation {self.generation_id!r}: event {event.first_offset} came after "
                f"{self._last_offset}; those in between are missing",
                reason="EVENTS_MISSING",
            )
        fresh = _drop_first(event, self._last_offset + 1 - event.first_offset)
        self._backoff.restart()
        self._last_offset = event.last_offset
        return self._end(fresh) if event.HasField("finished") else fresh

    def _end(self, finished: GenerationEvent) -> GenerationEvent | None:
        """Return the end of the stream, once."""
        is_repeated, self._complete = self._complete, True
        return None if is_repeated else finished

    def handle_break(self, error: WhenceError | None) -> float:
        """Return the seconds to wait, at most until the deadline."""
        self._deadline.check(error)
        return self._deadline.limit(self._backoff.choose_delay_s(error))


class WatchStream:
    """Stream of all generations' events, resumed after the last position.

    A watch without a position misses events if it breaks before its first event; give
    `after_position` to miss none.
    """

    complete = False

    def __init__(self, request: WatchGenerationsRequest, backoff: Backoff) -> None:
        self._request = request
        self._backoff = backoff

    def prepare_call(self) -> tuple[WatchGenerationsRequest, None]:
        """Return the watch after the last position, without a timeout."""
        return self._request, None

    def receive(self, response: Response) -> WatchGenerationsResponse | None:
        """Return the response, and note its position; None for a position without an event."""
        if not isinstance(response, WatchGenerationsResponse):
            raise make_unreadable_error(response)
        self._backoff.restart()
        self._request.after_position = response.position
        return response if response.HasField("event") else None

    def handle_break(self, error: WhenceError | None) -> float:
        """Return the seconds to wait before the next call."""
        return self._backoff.choose_delay_s(error)


class TrainingRunStream:
    """Stream of a training run's events, resumed after the last position until the run ends.

    The server ends the call with OK only at the run's end; when it shuts down, with an error.
    """

    def __init__(self, request: WatchTrainingRunRequest, backoff: Backoff) -> None:
        self._request = request
        self._backoff = backoff
        self._complete = False

    @property
    def complete(self) -> bool:
        """True if the run has ended."""
        return self._complete

    def prepare_call(self) -> tuple[WatchTrainingRunRequest, None]:
        """Return the watch after the last position, without a timeout."""
        return self._request, None

    def receive(self, response: Response) -> WatchTrainingRunResponse | None:
        """Return the response, and note its position; None for a position without events."""
        if not isinstance(response, WatchTrainingRunResponse):
            raise make_unreadable_error(response)
        self._backoff.restart()
        self._request.after_position = response.last_position
        return response if response.events else None

    def handle_break(self, error: WhenceError | None) -> float:
        """Return the seconds to wait; an end without an error is the run's end."""
        self._complete = error is None
        return 0.0 if error is None else self._backoff.choose_delay_s(error)


def make_unreadable_error(response: object) -> InternalError:
    """Return the error of a response that is not a message of the call's type.

    gRPC's asyncio API yields None for bytes that it could not parse.
    """
    return InternalError(
        f"this client could not parse a response: it is {type(response).__name__}",
        reason="RESPONSE_UNREADABLE",
    )


def _drop_first(event: GenerationEvent, num_seen: int) -> GenerationEvent:
    """Return the event without its first `num_seen` offsets."""
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
            "cannot be resumed in its middle",
            reason="EVENT_INDIVISIBLE",
        )
    fresh.first_offset += num_seen
    del batch.steps[:num_seen]
    return fresh
