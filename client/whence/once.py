"""Logic of streams that are not resumed, without I/O: the end of their call is their end."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from whence.backoff import RetryPolicy
from whence.errors import WhenceError
from whence.readiness import LoadingWait
from whence.resume import Request, Response, make_unreadable_error
from whence.v1 import generation_pb2, verification_pb2
from whence.v1 import training_pb2 as pb

Item = TypeVar("Item")


class OneCallStream(Generic[Item]):
    """Stream of one call. Before its first response, the call is made again while its model loads.

    Args:
        request: request of the call.
        kind: type of the responses.
        take: returns the item of a response; None if it has none.
        policy: bounds of the wait for a model that is loading.
    """

    def __init__(
        self,
        request: Request,
        kind: type[Response],
        take: Callable[[Any], Item | None],
        policy: RetryPolicy,
    ) -> None:
        self._request = request
        self._kind = kind
        self._take = take
        self._loading = LoadingWait(policy, None)
        self._begun = False
        self._complete = False

    @property
    def complete(self) -> bool:
        """True if the call has ended with OK."""
        return self._complete

    def prepare_call(self) -> tuple[Request, None]:
        """Return the request, without a timeout."""
        return self._request, None

    def receive(self, response: Response) -> Item | None:
        """Return the item of a response; None if it has none."""
        if not isinstance(response, self._kind):
            raise make_unreadable_error(response)
        self._begun = True
        return self._take(response)

    def handle_break(self, error: WhenceError | None) -> float:
        """Return the seconds until the call is made again; an end without an error is the end.

        Raises:
            WhenceError: the given error, unless it says that the model is loading.
        """
        if error is None:
            self._complete = True
            return 0.0
        if self._begun:
            raise error
        return self._loading.choose_delay_s(error)


def make_document_stream(
    request: pb.ReadDocumentRequest, policy: RetryPolicy
) -> OneCallStream[pb.ReadDocumentResponse]:
    """Return the stream of a document's responses."""
    return OneCallStream(request, pb.ReadDocumentResponse, lambda response: response, policy)


def make_pieces_stream(
    request: pb.ReadDocumentRequest, policy: RetryPolicy
) -> OneCallStream[bytes]:
    """Return the stream of a document's bytes; the first response has none."""
    return OneCallStream(
        request, pb.ReadDocumentResponse, lambda response: response.text or None, policy
    )


def make_emergence_stream(
    request: pb.TraceEmergenceRequest, policy: RetryPolicy
) -> OneCallStream[pb.TraceEmergenceResponse]:
    """Return the stream of a text's probabilities.

    A response without a result only keeps the stream open.
    """
    return OneCallStream(
        request,
        pb.TraceEmergenceResponse,
        lambda response: response if response.WhichOneof("result") else None,
        policy,
    )


def make_verification_stream(
    request: verification_pb2.VerifyGenerationRequest, policy: RetryPolicy
) -> OneCallStream[verification_pb2.VerifyGenerationResponse]:
    """Return the stream of a verification's findings.

    A response without a finding only keeps the stream open.
    """
    return OneCallStream(
        request,
        verification_pb2.VerifyGenerationResponse,
        lambda response: response if response.WhichOneof("event") else None,
        policy,
    )


def make_record_stream(
    generation_id: str, policy: RetryPolicy
) -> OneCallStream[generation_pb2.GenerationEvent]:
    """Return the stream of a recorded generation's events; progress is left out."""
    return OneCallStream(
        generation_pb2.ResumeGenerationRequest(generation_id=generation_id),
        generation_pb2.ResumeGenerationResponse,
        lambda response: None if response.event.HasField("progress") else response.event,
        policy,
    )


def add_event(
    record: verification_pb2.GenerationRecord, event: generation_pb2.GenerationEvent
) -> None:
    """Add an event of a generation to its record."""
    match event.WhichOneof("event"):
        case "started":
            record.started.CopyFrom(event.started)
        case "prompt_steps":
            record.prompt_steps.extend(event.prompt_steps.steps)
        case "steps":
            record.steps.extend(event.steps.steps)
        case "beam_round":
            record.beam_rounds.append(event.beam_round)
        case "finished":
            record.finished.CopyFrom(event.finished)
