"""Logic of streams that are not resumed, without I/O: the end of their call is their end."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from whence.backoff import RetryPolicy
from whence.errors import WhenceError
from whence.readiness import LoadingWait
from whence.resume import Request, Response, make_unreadable_error
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
