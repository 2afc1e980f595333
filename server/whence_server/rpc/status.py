"""Conversion of errors to gRPC statuses with google.rpc details."""

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from whence_server.domain.errors import (
    CallerLimitError,
    CheckpointPendingError,
    Code,
    ContentsFullError,
    DrainingError,
    EmergenceBusyError,
    ExplanationBusyError,
    FieldViolation,
    InvalidRequestError,
    JournalUnwritableError,
    ModelNotReadyError,
    ProviderAwayError,
    PublicCallsError,
    QueueFullError,
    RecordersFullError,
    TextQueueFullError,
    UpstreamAwayError,
    UpstreamBusyError,
    VerificationBusyError,
    WhenceError,
)
from whence_server.rpc.fitting import (
    MAX_DESCRIPTION_CHARACTERS,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARACTERS,
    MAX_STATUS_BYTES,
    join_violations,
    measure_status,
    truncate_name,
    truncate_text,
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
    Code.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
}

MAX_VIOLATIONS = 32
"""Maximum number of fields at fault in one status."""

_RETRYABLE = (
    CallerLimitError,
    ProviderAwayError,
    CheckpointPendingError,
    PublicCallsError,
    RecordersFullError,
    ContentsFullError,
    QueueFullError,
    TextQueueFullError,
    EmergenceBusyError,
    ExplanationBusyError,
    VerificationBusyError,
    JournalUnwritableError,
    ModelNotReadyError,
    DrainingError,
    UpstreamAwayError,
    UpstreamBusyError,
)
"""Errors whose `retry_after_s` is sent as RetryInfo."""


class _Lengths(NamedTuple):
    """Maximum lengths of the texts of a status."""

    message_bytes: int
    name_characters: int
    description_characters: int


_LENGTHS = tuple(
    _Lengths(
        MAX_MESSAGE_BYTES >> halvings,
        MAX_NAME_CHARACTERS >> halvings,
        MAX_DESCRIPTION_CHARACTERS >> halvings,
    )
    for halvings in range(5)
)
"""Lengths to try in turn: three characters may take twelve bytes each on the wire."""


def make_status(error: WhenceError) -> status_pb2.Status:
    """Convert an error to a google.rpc.Status: a code, a message, and details for programs.

    The status fits into HTTP/2 headers: it names only the first of many fields at fault, and
    `num_violations` of the ErrorInfo is the number of all.
    """
    violations = error.violations if isinstance(error, InvalidRequestError) else ()
    most = min(len(violations), MAX_VIOLATIONS)
    if most:
        # A status grows with the number of violations that it names.
        num_shown = bisect_right(
            range(1, most + 1),
            MAX_STATUS_BYTES,
            key=lambda num_shown: _measure(
                _build_status(error, violations[:num_shown], _LENGTHS[0])
            ),
        )
        violations = violations[: max(num_shown, 1)]
    for lengths in _LENGTHS:
        status = _build_status(error, violations, lengths)
        if _measure(status) <= MAX_STATUS_BYTES:
            break
    return status


def _measure(status: status_pb2.Status) -> int:
    return measure_status(status.message, status.ByteSize())


def _build_status(
    error: WhenceError, shown: Sequence[FieldViolation], lengths: _Lengths
) -> status_pb2.Status:
    """Build a status that names the given violations, with texts of limited lengths."""
    metadata = {
        key: truncate_name(value, lengths.name_characters) for key, value in error.metadata.items()
    }
    message = truncate_text(error.message, lengths.message_bytes)
    details: list[Message] = []
    if isinstance(error, InvalidRequestError) and shown:
        fitting_ones = [
            FieldViolation(
                truncate_name(violation.field, lengths.name_characters),
                truncate_name(violation.description, lengths.description_characters),
            )
            for violation in shown
        ]
        message = join_violations(fitting_ones, len(error.violations), lengths.message_bytes)
        if len(shown) < len(error.violations):
            metadata["num_violations"] = str(len(error.violations))
        details.append(_make_bad_request(fitting_ones))
    if isinstance(error, _RETRYABLE):
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    status = status_pb2.Status(code=error.code.value, message=message)
    for detail in (info, *details):
        status.details.add().Pack(detail)
    return status


def _make_bad_request(violations: Sequence[FieldViolation]) -> error_details_pb2.BadRequest:
    bad_request = error_details_pb2.BadRequest()
    for violation in violations:
        bad_request.field_violations.add(field=violation.field, description=violation.description)
    return bad_request


async def abort(context: "grpc.aio.ServicerContext[bytes, bytes]", error: WhenceError) -> NoReturn:
    """End the call with the error's status and details."""
    status = make_status(error)
    await context.abort(
        GRPC_CODES[error.code],
        status.message,
        ((DETAILS_KEY, status.SerializeToString()),),
    )
    raise AssertionError("abort returned")  # it always raises
