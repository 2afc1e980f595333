"""One list of gRPC status codes that are errors of the server, for spans and for metrics."""

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from whence.v1.call_pb2 import Call
from whence_server.telemetry.grpc_status import get_status_name, is_server_error
from whence_server.telemetry.spans.spans import make_server_span

SERVER_ERRORS = {
    "UNKNOWN",
    "DEADLINE_EXCEEDED",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
}
"""Errors of SERVER spans in the semantic conventions for gRPC."""


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_status_codes_are_server_errors_as_in_the_conventions(code: grpc.StatusCode) -> None:
    assert get_status_name(code.value[0]) == code.name
    assert is_server_error(code.value[0]) == (code.name in SERVER_ERRORS)


def test_a_number_that_is_no_status_code_is_an_error_without_a_name() -> None:
    assert get_status_name(17) is None
    assert is_server_error(17)


def test_a_span_with_an_unknown_status_code_is_an_error_that_names_the_number() -> None:
    call = Call(trace_id="ab" * 16, span_id="cd" * 8, trace_flags=1, method="s/M", status_code=99)
    span = make_server_span(call)
    assert span is not None
    assert span.status.code == Status.STATUS_CODE_ERROR
    attributes = {one.key: one.value.string_value for one in span.attributes}
    assert attributes["rpc.response.status_code"] == attributes["error.type"] == "99"
