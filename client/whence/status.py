"""Conversion of gRPC errors to `WhenceError`s, with their google.rpc details."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from whence.errors import ERRORS, Code, FieldViolation, InternalError, WhenceError

DETAILS_KEY = "grpc-status-details-bin"


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the corresponding WhenceError for a gRPC error raised inside."""
    try:
        yield
    except grpc.RpcError as error:
        raise convert_error(error) from error


def convert_error(error: grpc.RpcError) -> WhenceError:
    """Return the WhenceError of a failed call, of the synchronous or the asyncio API."""
    # The types of RpcError have no status, but every error that a call raises has one.
    call: Any = error
    code = Code(call.code().value[0])
    kind = ERRORS.get(code, InternalError)
    details = _read_details(call.trailing_metadata() or ())
    return kind(call.details() or code.name, code=code, **details)


def _read_details(trailing_metadata: Any) -> dict[str, Any]:
    """Return the server's google.rpc details as keyword arguments of WhenceError."""
    found: dict[str, Any] = {}
    for any_detail in _read_status(trailing_metadata).details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        if any_detail.Unpack(info):
            found["reason"] = info.reason
            found["metadata"] = dict(info.metadata)
        elif any_detail.Unpack(request):
            found["violations"] = [
                FieldViolation(violation.field, violation.description)
                for violation in request.field_violations
            ]
        elif any_detail.Unpack(retry):
            found["retry_delay_s"] = retry.retry_delay.ToNanoseconds() / 1e9
    return found


def _read_status(trailing_metadata: Any) -> Any:
    for key, value in trailing_metadata:
        if key == DETAILS_KEY:
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break  # malformed by a proxy: the status itself is raised
    return status_pb2.Status()
