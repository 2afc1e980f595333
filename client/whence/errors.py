"""Errors of calls to the server.

    WhenceError                   a code, a reason and metadata for programs, a message for people
    ├── InvalidRequestError       INVALID_ARGUMENT, OUT_OF_RANGE: `violations` names each field
    ├── NotFoundError             NOT_FOUND: no such generation, model, training run, document
    ├── AlreadyExistsError        ALREADY_EXISTS: the generation id belongs to another request
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED: retry after `retry_delay_s`
    ├── FailedPreconditionError   FAILED_PRECONDITION: the model failed to load, a document changed
    ├── UnavailableError          UNAVAILABLE: no server, one that shuts down, or a broken stream
    ├── DeadlineExceededError     DEADLINE_EXCEEDED: `timeout_s` passed
    ├── CallCancelledError        CANCELLED: somebody cancelled the call
    ├── UnimplementedError        UNIMPLEMENTED: the server does not support it
    ├── PermissionDeniedError     PERMISSION_DENIED
    ├── UnauthenticatedError      UNAUTHENTICATED
    ├── InternalError             INTERNAL, UNKNOWN, ABORTED, DATA_LOSS: a fault of the server or
    │                             of a proxy
    └── GenerationFailedError     the generation started and then failed

Arguments that no request can represent raise ValueError or TypeError before any call.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import NamedTuple


class Code(IntEnum):
    """Codes of google.rpc.Code, with its numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Origin(StrEnum):
    """Party that ended a call with an error."""

    SERVER = "server"
    """whence's server: the status has an ErrorInfo of its domain."""
    PATH = "path"
    """A proxy, a load balancer, the network, or gRPC at either end."""
    CLIENT = "client"
    """This client, which could not send, receive or decode a message, or closed the call."""


class FieldViolation(NamedTuple):
    """One field at fault: its path in the request, and the rule that it breaks."""

    field: str
    description: str


class WhenceError(Exception):
    """Error that ended a call.

    Attributes:
        code: the call's status.
        origin: the party that ended the call.
        reason: UPPER_SNAKE_CASE, for programs, such as "QUEUE_FULL" or "HTTP_413"; empty if there
            is none.
        message: description for people.
        metadata: ids and limits, for programs.
        violations: the fields at fault, for INVALID_ARGUMENT.
        retry_delay_s: seconds to wait before a retry; None if the server sent none.
    """

    code = Code.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: Code | None = None,
        origin: Origin = Origin.CLIENT,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.code if code is None else code
        self.origin = origin
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_delay_s = retry_delay_s


class InvalidRequestError(WhenceError):
    """The request is invalid and must be changed."""

    code = Code.INVALID_ARGUMENT


class NotFoundError(WhenceError):
    """No such generation, model, training run or document, or it was deleted."""

    code = Code.NOT_FOUND


class AlreadyExistsError(WhenceError):
    """The generation id belongs to another request, or to a deleted generation."""

    code = Code.ALREADY_EXISTS


class ResourceExhaustedError(WhenceError):
    """The server is at a limit; retry after `retry_delay_s`."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPreconditionError(WhenceError):
    """The server is not in the required state: the model is loading, or a document changed."""

    code = Code.FAILED_PRECONDITION


class UnavailableError(WhenceError):
    """No server could be reached, it is shutting down, or a stream broke and did not resume."""

    code = Code.UNAVAILABLE


class DeadlineExceededError(WhenceError):
    """The call's timeout has passed."""

    code = Code.DEADLINE_EXCEEDED


class CallCancelledError(WhenceError):
    """The call was cancelled, by this process or another one."""

    code = Code.CANCELLED


class UnimplementedError(WhenceError):
    """The server does not support the method."""

    code = Code.UNIMPLEMENTED


class PermissionDeniedError(WhenceError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class UnauthenticatedError(WhenceError):
    """The caller is not authenticated."""

    code = Code.UNAUTHENTICATED


class InternalError(WhenceError):
    """A fault of the server, or of a proxy before it."""

    code = Code.INTERNAL


class GenerationFailedError(WhenceError):
    """The generation started and then failed; the tokens streamed before stay valid."""

    code = Code.INTERNAL


ERRORS: Mapping[Code, type[WhenceError]] = {
    Code.CANCELLED: CallCancelledError,
    Code.UNKNOWN: InternalError,
    Code.INVALID_ARGUMENT: InvalidRequestError,
    Code.DEADLINE_EXCEEDED: DeadlineExceededError,
    Code.NOT_FOUND: NotFoundError,
    Code.ALREADY_EXISTS: AlreadyExistsError,
    Code.PERMISSION_DENIED: PermissionDeniedError,
    Code.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    Code.FAILED_PRECONDITION: FailedPreconditionError,
    Code.ABORTED: InternalError,
    Code.OUT_OF_RANGE: InvalidRequestError,
    Code.UNIMPLEMENTED: UnimplementedError,
    Code.INTERNAL: InternalError,
    Code.UNAVAILABLE: UnavailableError,
    Code.DATA_LOSS: InternalError,
    Code.UNAUTHENTICATED: UnauthenticatedError,
}
"""Error class of each status code."""
