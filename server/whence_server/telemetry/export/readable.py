"""OTLP spans as the OpenTelemetry SDK's own, for exporters that users bring along."""

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


def readable_spans(request: bytes) -> Iterator[ReadableSpan]:
    """Make finished spans of a serialised ExportTraceServiceRequest, in its order."""
    for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans:
        resource = Resource(
            attributes_of(resource_spans.resource.attributes), resource_spans.schema_url
        )
        for scope_spans in resource_spans.scope_spans:
            scope = _scope(scope_spans.scope, scope_spans.schema_url)
            for span in scope_spans.spans:
                yield _readable(span, resource, scope)


def attributes_of(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    """Decode OTLP attributes."""
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _readable(span: Span, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    parent = None
    if span.parent_span_id:
        parent = _context(
            span.trace_id, span.parent_span_id, span.flags, is_remote=_is_remote(span.flags)
        )
    return ReadableSpan(
        name=span.name,
        context=_context(
            span.trace_id, span.span_id, span.flags, is_remote=False, state=span.trace_state
        ),
        parent=parent,
        resource=resource,
        attributes=attributes_of(span.attributes),
        events=[
            Event(event.name, attributes_of(event.attributes), event.time_unix_nano)
            for event in span.events
        ],
        links=[
            Link(
                _context(
                    link.trace_id,
                    link.span_id,
                    link.flags,
                    is_remote=_is_remote(link.flags),
                    state=link.trace_state,
                ),
                attributes_of(link.attributes),
            )
            for link in span.links
        ],
        kind=_KINDS.get(span.kind, SpanKind.INTERNAL),
        status=Status(StatusCode(span.status.code), span.status.message or None),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano,
        instrumentation_scope=scope,
    )


def _context(
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


def _scope(scope: ScopeMessage, schema_url: str) -> InstrumentationScope:
    return InstrumentationScope(
        scope.name, scope.version or None, schema_url or None, attributes_of(scope.attributes)
    )


def _value(value: AnyValue) -> Value:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return {item.key: _value(item.value) for item in value.kvlist_value.values}
    decoded: str | bool | int | float | bytes = getattr(value, kind)
    return decoded
