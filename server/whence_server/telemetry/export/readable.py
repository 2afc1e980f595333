"""Conversion of OTLP spans into spans of the OpenTelemetry SDK, for exporters of users."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope as ScopeMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Span, SpanFlags
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

Value: TypeAlias = "str | bool | int | float | bytes | tuple[Value, ...] | dict[str, Value] | None"

_KINDS = {
    Span.SPAN_KIND_SERVER: SpanKind.SERVER,
    Span.SPAN_KIND_CLIENT: SpanKind.CLIENT,
    Span.SPAN_KIND_PRODUCER: SpanKind.PRODUCER,
    Span.SPAN_KIND_CONSUMER: SpanKind.CONSUMER,
}


def make_readable_spans(request: bytes) -> Iterator[ReadableSpan]:
    """Yield the spans of a serialised ExportTraceServiceRequest as finished spans, in order."""
    for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans:
        resource = Resource(
            decode_attributes(resource_spans.resource.attributes), resource_spans.schema_url
        )
        for scope_spans in resource_spans.scope_spans:
            scope = _make_scope(scope_spans.scope, scope_spans.schema_url)
            for span in scope_spans.spans:
                yield _make_readable_span(span, resource, scope)


def decode_attributes(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    """Decode OTLP attributes into Python values."""
    return {attribute.key: _decode_value(attribute.value) for attribute in attributes}


def _make_readable_span(
    span: Span, resource: Resource, scope: InstrumentationScope
) -> ReadableSpan:
    parent = None
    if span.parent_span_id:
        parent = _make_context(
            span.trace_id, span.parent_span_id, span.flags, is_remote=_is_remote(span.flags)
        )
    return ReadableSpan(
        name=span.name,
        context=_make_context(
            span.trace_id, span.span_id, span.flags, is_remote=False, state=span.trace_state
        ),
        parent=parent,
        resource=resource,
        attributes=decode_attributes(span.attributes),
        events=[
            Event(event.name, decode_attributes(event.attributes), event.time_unix_nano)
            for event in span.events
        ],
        links=[
            Link(
                _make_context(
                    link.trace_id,
                    link.span_id,
                    link.flags,
                    is_remote=_is_remote(link.flags),
                    state=link.trace_state,
                ),
                decode_attributes(link.attributes),
            )
            for link in span.links
        ],
        kind=_KINDS.get(span.kind, SpanKind.INTERNAL),
        status=Status(StatusCode(span.status.code), span.status.message or None),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano,
        instrumentation_scope=scope,
    )


def _make_context(
    trace_id: bytes, span_id: bytes, flags: int, *, is_remote: bool, state: str = ""
) -> SpanContext:
    return SpanContext(
        int.from_bytes(trace_id),
        int.from_bytes(span_id),
        is_remote=is_remote,
        trace_flags=TraceFlags(flags & SpanFlags.SPAN_FLAGS_TRACE_FLAGS_MASK),
        trace_state=TraceState.from_header([state]) if state else TraceState(),
    )


def _is_remote(flags: int) -> bool:
    return bool(flags & SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK)


def _make_scope(scope: ScopeMessage, schema_url: str) -> InstrumentationScope:
    return InstrumentationScope(
        scope.name, scope.version or None, schema_url or None, decode_attributes(scope.attributes)
    )


def _decode_value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_decode_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return {item.key: _decode_value(item.value) for item in value.kvlist_value.values}
    decoded: str | bool | int | float | bytes = getattr(value, kind)
    return decoded
