"""The one table from errors to gRPC statuses with google.rpc details."""

from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from whence_server.domain.errors import (
    Code,
    EmergenceBusyError,
    InvalidRequestError,
    QueueFullError,
    TextQueueFullError,
    WhenceError,
)

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
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
}


def error_status(error: WhenceError) -> status_pb2.Status:
    """The error as a google.rpc.Status: a code, a message, and details for programs."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    ]
    if isinstance(error, InvalidRequestError):
        violations = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
            for v in error.violations
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if isinstance(error, QueueFullError | TextQueueFullError | EmergenceBusyError):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=error.code.value, message=error.message, details=packed)


async def abort(context: "grpc.aio.ServicerContext[bytes, bytes]", error: WhenceError) -> NoReturn:
    """Ends the call with the error's status and details."""
    status = error_status(error)
    await context.abort(
        GRPC_CODES[error.code],
        error.message,
        ((DETAILS_KEY, status.SerializeToString()),),
    )
    raise AssertionError("abort returned")  # it always raises
