"""Every error that the client raises about the server's answer.

    WhenceError                   a code, a reason and metadata for programs, a message for people
    ├── InvalidRequestError       INVALID_ARGUMENT, OUT_OF_RANGE: `violations` names each field
    ├── NotFoundError             NOT_FOUND: no such generation, model, training run, document
    ├── AlreadyExistsError        ALREADY_EXISTS: the generation id belongs to another request
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED: `retry_delay_s` says when to come again
    ├── FailedPreconditionError   FAILED_PRECONDITION: the model is loading, a document changed
    ├── UnavailableError          UNAVAILABLE: no server, or one on its way out
    ├── DeadlineExceededError     DEADLINE_EXCEEDED: `timeout_s` passed
    ├── CallCancelledError        CANCELLED: somebody cancelled the call
    ├── UnimplementedError        UNIMPLEMENTED: this server does not offer it
    ├── PermissionDeniedError     PERMISSION_DENIED
    ├── UnauthenticatedError      UNAUTHENTICATED
    ├── InternalError             INTERNAL, UNKNOWN, ABORTED, DATA_LOSS: a fault of the server
    └── GenerationFailedError     the generation began, and could not go on

Arguments that no request could carry are ValueError or TypeError, before any call is made.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple


class Code(IntEnum):
    """google.rpc.Code: the numbers are the wire's."""

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


class FieldViolation(NamedTuple):
    """One field at fault: its path in the request, and the rule that it breaks."""

    field: str
    description: str


class WhenceError(Exception):
    """The server's answer to a call was an error.

    Attributes:
        code: the call's status.
        reason: UPPER_SNAKE_CASE, for programs, such as "QUEUE_FULL"; empty if none was sent.
        message: for people.
        metadata: ids and limits, for programs.
        violations: the fields at fault, for INVALID_ARGUMENT.
        retry_delay_s: how long the server asks to wait before a retry, where it says so.
    """

    code = Code.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: Code | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.code if code is None else code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_delay_s = retry_delay_s


class InvalidRequestError(WhenceError):
    """The request can never be served as it is."""

    code = Code.INVALID_ARGUMENT


class NotFoundError(WhenceError):
    """No such generation, model, training run or document, or it was deleted."""

    code = Code.NOT_FOUND


class AlreadyExistsError(WhenceError):
    """The generation id belongs to another request, or to a deleted generation."""

    code = Code.ALREADY_EXISTS


class ResourceExhaustedError(WhenceError):
    """The server has no room now; `retry_delay_s` says when to come again."""

    code = Code.RESOURCE_EXHAUSTED


class FailedPreconditionError(WhenceError):
    """Something else has to happen first, such as the model's loading."""

    code = Code.FAILED_PRECONDITION


class UnavailableError(WhenceError):
    """No server could be reached, or it is on its way out."""

    code = Code.UNAVAILABLE


class DeadlineExceededError(WhenceError):
    """The call's time was up."""

    code = Code.DEADLINE_EXCEEDED


class CallCancelledError(WhenceError):
    """The call was cancelled, by this process or on its way."""

    code = Code.CANCELLED


class UnimplementedError(WhenceError):
    """The server does not offer this."""

    code = Code.UNIMPLEMENTED


class PermissionDeniedError(WhenceError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED


class UnauthenticatedError(WhenceError):
    """The caller did not say who it is."""

    code = Code.UNAUTHENTICATED


class InternalError(WhenceError):
    """A fault of the server, or of something between."""

    code = Code.INTERNAL


class GenerationFailedError(WhenceError):
    """The generation began and could not go on; what was streamed before stands."""

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
"""The one table from statuses to errors."""
