"""A generation as the API's answers need it: started, and read from the journal."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from whence.v1.generation_pb2 import FinishReason, GenerationFinished, GenerationStarted
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import Code, WhenceError
from whence_server.domain.limits import Limits
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.arrival import Arrival
from whence_server.generation.readers import Reader
from whence_server.http.exchange import Exchange
from whence_server.rpc.serving import Serving

Event: TypeAlias = GenerationStarted | Step | GenerationFinished

_TYPES: dict[EntryKind, type[Event]] = {
    EntryKind.STARTED: GenerationStarted,
    EntryKind.STEP: Step,
    EntryKind.FINISHED: GenerationFinished,
}


@dataclass(frozen=True, slots=True)
class Front:
    """Parts that the handlers of all routes share.

    Attributes:
        serving: the served model and its generations.
        limits: limits on requests.
        max_body_bytes: maximum size of a request's body.
        progress_interval_s: seconds of silence after which a stream gets a comment; 0 for never.
    """

    serving: Serving
    limits: Limits
    max_body_bytes: int
    progress_interval_s: float


async def start(front: Front, wanted: GenerationRequest, exchange: Exchange) -> None:
    """Start the generation of a request, and give its id to the exchange.

    Raises:
        WhenceError: the request is refused.
    """
    arrival = Arrival(
        exchange.trace_context, exchange.time_ns, exchange.monotonic_ns, exchange.identity.id
    )
    generations = front.serving.get_generations()
    exchange.generation_id = await generations.start(wanted, arrival)
    exchange.unrecorded_reason = generations.get_unrecorded_reason(exchange.generation_id)


async def read_events(front: Front, exchange: Exchange) -> AsyncGenerator[list[Event], None]:
    """Yield a started generation's start, steps and finish, in lists as they come.

    Raises:
        WhenceError: the generation failed or was stopped.
    """
    reader = Reader(exchange.caller, lambda: False)
    following = front.serving.follow(exchange.generation_id, 0, reader)
    async with aclosing(following) as batches:
        async for entries in batches:
            events = [
                _TYPES[entry.kind].FromString(entry.payload)
                for entry in entries
                if entry.kind in _TYPES
            ]
            if events and isinstance(events[-1], GenerationFinished):
                check_finish(events[-1])
            yield events


async def read_finished(front: Front, exchange: Exchange) -> list[Event]:
    """Return all events of a started generation, once it has finished.

    Raises:
        WhenceError: the generation failed or was stopped.
    """
    async with aclosing(read_events(front, exchange)) as batches:
        return [event async for events in batches for event in events]


_STOPPED = {
    FinishReason.FINISH_REASON_CANCELLED: (Code.CANCELLED, "was cancelled"),
    FinishReason.FINISH_REASON_TIMEOUT: (
        Code.DEADLINE_EXCEEDED,
        "took longer than max_duration_s",
    ),
    FinishReason.FINISH_REASON_INTERRUPTED: (
        Code.UNAVAILABLE,
        "was interrupted: the server ended",
    ),
}


class _StoppedError(WhenceError):
    """A generation did not end by itself; its tokens so far are on record."""

    reason = "GENERATION_STOPPED"
    retry_after_s: float | None = None

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_finish(finished: GenerationFinished) -> None:
    """Raise if a generation failed or was stopped.

    Raises:
        WhenceError: it failed, or was stopped.
    """
    if finished.HasField("failure"):
        failure = finished.failure
        error = _StoppedError(Code(failure.code), failure.message)
        error.reason = failure.reason
        if failure.HasField("retry_delay"):
            error.retry_after_s = failure.retry_delay.ToTimedelta().total_seconds()
        raise error
    stopped = _STOPPED.get(finished.finish_reason)
    if stopped is not None:
        code, words = stopped
        raise _StoppedError(
            code,
            f"the generation {words}; its {finished.num_generated_tokens} tokens are on record",
        )
