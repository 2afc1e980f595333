"""Conversion of errors to gRPC statuses with google.rpc details."""

from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from whence_server.domain.errors import (
    Code,
    EmergenceBusyError,
    FieldViolation,
    InvalidRequestError,
    JournalUnwritableError,
    QueueFullError,
    TextQueueFullError,
    WhenceError,
)
from whence_server.rpc.fitting import select_violations, truncate_text, truncate_word

DOMAIN = "whence.v1"
DETAILS_KEY = "grpc-status-details-bin"

GRPC_CODES: dict[Code, grpc.StatusCode] = {
    Code.CANCELLED: grpc.StatusCode.CANCELLED,
    Code.UNKNOWN: grpc.StatusCode.UNKNOWN,
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
}

_RETRYABLE = (QueueFullError, TextQueueFullError, EmergenceBusyError, JournalUnwritableError)
"""Errors whose `retry_after_s` is sent as RetryInfo."""


def make_status(error: WhenceError) -> status_pb2.Status:
    """Convert an error to a google.rpc.Status: a code, a message, and details for programs.

    The status fits into HTTP/2 headers: it names only the first of many fields at fault, and
    `num_violations` of the ErrorInfo is the number of all.
    """
    metadata = {key: truncate_word(value) for key, value in error.metadata.items()}
    message = error.message
    violations: list[FieldViolation] = []
    if isinstance(error, InvalidRequestError):
        violations = select_violations(error.violations)
        num_left_out = len(error.violations) - len(violations)
        if num_left_out:
            metadata["num_violations"] = str(len(error.violations))
            # The number comes first: the rest may be truncated.
            message = f"{num_left_out} more fields at fault, besides {_join(violations)}"
        else:
            message = _join(violations)
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if violations:
        bad_request = error_details_pb2.BadRequest()
        for violation in violations:
            bad_request.field_violations.add(
                field=violation.field, description=violation.description
            )
        details.append(bad_request)
    if isinstance(error, _RETRYABLE):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.code.value, message=truncate_text(message), details=packed)


def _join(violations: list[FieldViolation]) -> str:
    return "; ".join(f"{violation.field}: {violation.description}" for violation in violations)


async def abort(context: "grpc.aio.ServicerContext[bytes, bytes]", error: WhenceError) -> NoReturn:
    """End the call with the error's status and details."""
    status = make_status(error)
    await context.abort(
        GRPC_CODES[error.code],
        status.message,
        ((DETAILS_KEY, status.SerializeToString()),),
    )
    raise AssertionError("abort returned")  # it always raises
