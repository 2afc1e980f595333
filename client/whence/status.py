"""Conversion of gRPC errors to `WhenceError`s, with their google.rpc details."""

import re
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from whence.ends import End, describe_tls_end
from whence.errors import ERRORS, Code, FieldViolation, InternalError, Origin, WhenceError

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "whence.v1"
"""Domain of the ErrorInfo that the server puts into each of its statuses."""


def convert_error(error: grpc.RpcError) -> WhenceError:
    """Return the WhenceError of a failed call, of the synchronous or the asyncio API."""
    # The types of RpcError have no status, but every error that a call raises has one.
    call: Any = error
    code = Code(call.code().value[0])
    message = call.details() or code.name
    details, domain = _read_details(call.trailing_metadata() or ())
    if domain == DOMAIN:
        return ERRORS.get(code, InternalError)(message, code=code, origin=Origin.SERVER, **details)
    end = describe_end(message)
    kind = ERRORS.get(code, InternalError)
    if code is Code.CANCELLED and end.origin is Origin.PATH:
        # Nobody cancelled the call: a proxy reset the stream, or the server closed it.
        kind = InternalError
    details["reason"] = details.get("reason") or end.reason
    return kind(end.message or message, code=code, origin=end.origin, **details)


_CLIENT_ENDS = {
    "Channel closed!": End(Origin.CLIENT),
    "Locally cancelled by application!": End(Origin.CLIENT),
    "Exception serializing request!": End(
        Origin.CLIENT, "REQUEST_UNSENDABLE", "this client could not serialise its request"
    ),
    "Exception deserializing response!": End(
        Origin.CLIENT, "RESPONSE_UNREADABLE", "this client could not parse a response"
    ),
}
_HTTP_STATUS = re.compile(r"Received http2 header with status: (\d{3})")
_HTTP_HINTS = {
    413: ": the request is too large for it",
    431: ": the metadata of the call are too large for it",
}
_WORDS = (
    ("larger than max", End(Origin.PATH, "MESSAGE_TOO_LARGE")),
    ("metadata size exceeds", End(Origin.PATH, "METADATA_TOO_LARGE")),
    ("ecompress", End(Origin.CLIENT, "RESPONSE_UNREADABLE")),
    ("RST_STREAM", End(Origin.PATH, "STREAM_RESET")),
)
"""Ends by words in their description, in grpcio 1.62 to 1.85."""


def describe_end(description: str) -> End:
    """Return who ended a call and why, from gRPC's description: gRPC gives neither otherwise."""
    if description in _CLIENT_ENDS:
        return _CLIENT_ENDS[description]
    if found := _HTTP_STATUS.search(description):
        number = int(found[1])
        message = f"a proxy before the server answered with HTTP {number}"
        return End(Origin.PATH, f"HTTP_{number}", message + _HTTP_HINTS.get(number, ""))
    for words, end in _WORDS:
        if words in description:
            return end
    return describe_tls_end(description) or End(Origin.PATH)


def _read_details(trailing_metadata: Any) -> tuple[dict[str, Any], str]:
    """Return google.rpc details as keyword arguments of WhenceError, and ErrorInfo's domain."""
    found: dict[str, Any] = {}
    domain = ""
    for any_detail in _read_status(trailing_metadata).details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if any_detail.Unpack(info):
            domain = info.domain
            found["reason"] = info.reason
            found["metadata"] = dict(info.metadata)
        elif any_detail.Unpack(request):
            found["violations"] = [
                FieldViolation(violation.field, violation.description)
                for violation in request.field_violations
            ]
        elif any_detail.Unpack(retry):
            found["retry_delay_s"] = retry.retry_delay.ToNanoseconds() / 1e9
    return found, domain


def _read_status(trailing_metadata: Any) -> Any:
    for key, value in trailing_metadata:
        if key == DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break  # malformed by a proxy: the status itself is raised
    return status_pb2.Status()
