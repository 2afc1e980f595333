"""The caller's trace, the service's resource, and the endpoint's spelling."""

import re

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from whence_server.config.telemetry import read_resource
from whence_server.telemetry.context import read_trace_context
from whence_server.telemetry.export.resource import Envelope, make_service_resource

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"


def test_the_callers_trace_is_continued():
    context = read_trace_context(
        [("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=1,b=2"), ("x-bin", b"\x00")]
    )
    assert context.trace_id == TRACE
    assert context.parent_span_id == SPAN
    assert context.trace_state == "a=1,b=2"
    assert context.sampled
    assert re.fullmatch("[0-9a-f]{16}", context.span_id)
    assert context.span_id != SPAN


def test_an_unsampled_callers_trace_stays_unsampled():
    context = read_trace_context([("traceparent", f"00-{TRACE}-{SPAN}-00")])
    assert context.trace_id == TRACE
    assert not context.sampled


def test_several_tracestate_headers_are_joined():
    context = read_trace_context(
        [("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=1"), ("tracestate", "b=2")]
    )
    assert context.trace_state == "a=1,b=2"


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        [("traceparent", "nonsense")],
        [("traceparent", f"00-{'0' * 32}-{SPAN}-01")],
        [("traceparent", f"00-{TRACE}-{'0' * 16}-01")],
        [("traceparent", f"ff-{TRACE}-{SPAN}-01")],
        [("traceparent", f"00-{TRACE}-{SPAN}-01-more")],
        [("traceparent", f"00-{TRACE}-{SPAN}-00"), ("traceparent", f"00-{TRACE}-{SPAN}-01")],
        [("tracestate", "a=1")],
    ],
)
def test_without_a_valid_parent_a_new_trace_begins(metadata):
    first, second = read_trace_context(metadata), read_trace_context(metadata)
    assert re.fullmatch("[0-9a-f]{32}", first.trace_id)
    assert TRACE != first.trace_id != second.trace_id
    assert first.span_id != second.span_id
    assert first.parent_span_id == ""
    assert first.trace_state == ""
    assert first.sampled


def test_a_sampler_decides_whether_a_trace_is_sampled():
    assert not read_trace_context([], sampler=ALWAYS_OFF).sampled


def test_the_resource_is_whence_unless_the_environment_says_otherwise():
    environment = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test,x=y%20z"}
    resource = make_service_resource(
        "1.2", {"x": "own", "service.instance.id": "i"}, read_resource(environment)
    )
    assert resource.attributes["service.name"] == "whence"
    assert resource.attributes["service.version"] == "1.2"
    assert resource.attributes["service.instance.id"] == "i"
    assert resource.attributes["x"] == "y z"
    assert resource.attributes["deployment.environment.name"] == "test"
    environment["OTEL_SERVICE_NAME"] = "mine"
    named = make_service_resource("1.2", configured=read_resource(environment))
    assert named.attributes["service.name"] == "mine"


@pytest.mark.parametrize("num_spans", [0, 1, 3, 200])
def test_the_envelope_equals_the_serialised_message(num_spans):
    spans = [Span(name="x" * index, span_id=bytes(8)) for index in range(num_spans)]
    pieces = [ScopeSpans(spans=[span]).SerializeToString() for span in spans]
    request = Envelope(make_service_resource("1.2"), "1.2").make_request(pieces)
    message = ExportTraceServiceRequest.FromString(request)
    assert message.SerializeToString() == request
    (resource_spans,) = message.resource_spans
    (scope_spans,) = resource_spans.scope_spans
    assert list(scope_spans.spans) == spans
    assert scope_spans.scope.name == "whence"
    keys = [attribute.key for attribute in resource_spans.resource.attributes]
    assert "service.name" in keys
    assert keys == sorted(keys)
