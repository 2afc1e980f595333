"""Decision whether a stream goes on after one of its calls ended with an error.

A status of the server keeps its meaning. Any other status says only that something between the
client and the server, or gRPC itself, ended the call: the stream is resumed, except where the same
call would end in the same way again. The contract states the same rules for other clients
(GenerationService in generation.proto).
"""

from enum import Enum

from whence.errors import Code, Origin, WhenceError


class Recovery(Enum):
    """Decision about a stream after one of its calls ended with an error."""

    WAIT = "wait"
    """Call again after a delay: the server is not ready now."""
    RESUME = "resume"
    """Call again after a delay: the connection broke."""
    END = "end"
    """Raise the error."""


OTHER_SERVER_REASON = "GENERATION_NOT_FOUND"
"""Reason of NOT_FOUND that ends after a while if several servers share the address."""

RESET_REASON = "STREAM_RESET"
"""Reason of an HTTP/2 RST_STREAM frame, whose error code becomes a status of no meaning."""

FINAL_PATH_REASONS = frozenset(
    {"HTTP_400", "HTTP_413", "HTTP_431", "MESSAGE_TOO_LARGE", "METADATA_TOO_LARGE"}
)
"""Reasons of the path that concern the request or the answer itself, however often it is sent."""

RESUMED_PATH_CODES = frozenset(
    {
        Code.CANCELLED,
        Code.UNKNOWN,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.ABORTED,
        Code.INTERNAL,
        Code.UNAVAILABLE,
    }
)
"""Codes that proxies, load balancers and gRPC give to a connection that broke."""


def choose_recovery(error: WhenceError, *, begun: bool) -> Recovery:
    """Return how a stream goes on after one of its calls ended with an error.

    Args:
        error: the end of the call; not the caller's own cancellation or deadline.
        begun: True if the stream has received an event.
    """
    match error.origin:
        case Origin.CLIENT:
            return Recovery.END
        case Origin.SERVER:
            return _choose_for_server(error, begun=begun)
        case Origin.PATH:
            return _choose_for_path(error)


def may_still_run(error: WhenceError) -> bool:
    """Return whether a generation may still run, and be cancelled, after its stream ended so.

    A server that could not be reached for the whole patience is not asked again.
    """
    return error.origin is Origin.CLIENT or (
        error.origin is Origin.PATH and error.reason in FINAL_PATH_REASONS
    )


def _choose_for_server(error: WhenceError, *, begun: bool) -> Recovery:
    if error.code is Code.UNAVAILABLE:
        return Recovery.WAIT
    # A generation that has begun is somewhere: the next call may reach the server that runs it.
    if begun and error.reason == OTHER_SERVER_REASON:
        return Recovery.WAIT
    return Recovery.END


def _choose_for_path(error: WhenceError) -> Recovery:
    if error.reason in FINAL_PATH_REASONS:
        return Recovery.END
    if error.reason == RESET_REASON or error.code in RESUMED_PATH_CODES:
        return Recovery.RESUME
    return Recovery.END
