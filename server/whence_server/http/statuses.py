"""HTTP statuses of the server's errors."""

from http import HTTPStatus

from whence_server.domain.errors import (
    Code,
    JournalFullError,
    MediaTypeError,
    ModelFailedError,
    RequestTooLargeError,
    WhenceError,
)

CLIENT_CLOSED_REQUEST = 499
"""Status on record of a request whose caller disconnected before the answer began; nginx's."""

_STATUSES: dict[Code, int] = {
    Code.CANCELLED: CLIENT_CLOSED_REQUEST,
    Code.UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.FAILED_PRECONDITION: HTTPStatus.BAD_REQUEST,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.DATA_LOSS: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}
"""The mapping of google/rpc/code.proto."""


def get_http_status(error: WhenceError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, RequestTooLargeError):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if isinstance(error, MediaTypeError):
        return HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    if isinstance(error, (JournalFullError, ModelFailedError)):
        # The caller can do nothing about it, and a smaller or later request may succeed.
        return HTTPStatus.SERVICE_UNAVAILABLE
    return _STATUSES[error.code]
