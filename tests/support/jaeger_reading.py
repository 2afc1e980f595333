"""Spans as Jaeger's API returns them, and as it should return them."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from span_reading import mapping

KINDS = {Span.SPAN_KIND_INTERNAL: "internal", Span.SPAN_KIND_SERVER: "server"}
SERVICE = "whence"
SCOPE = ("otel.scope.name", "otel.scope.version")
TEXTS = {"whence.token.text"}
"""Attributes that may begin like an array, and are none."""
FROM_FIELDS = {"span.kind", "error", "otel.status_code", "otel.status_description"}
"""Tags that Jaeger makes of fields other than attributes."""


@dataclass(frozen=True)
class Shown:
    """A span as Jaeger shows it; times in microseconds."""

    service: str
    name: str
    start: int
    duration: int
    parent: str
    tags: dict[str, object]
    """Attributes, and the kind and the status."""
    links: list[tuple[str, str]] = field(default_factory=list)
    """Ids of traces and spans."""
    events: list[tuple[int, dict[str, object]]] = field(default_factory=list)


def read_trace(answer: dict[str, Any]) -> dict[str, Shown]:
    """Read the only trace of an answer of `/api/traces`, by span ids.

    Raises:
        AssertionError: a span is there twice, or Jaeger has a warning about one.
    """
    (trace,) = answer["data"]
    assert not answer.get("errors")
    assert not trace["warnings"]
    counts = Counter(span["spanID"] for span in trace["spans"])
    assert counts.most_common(1)[0][1] == 1, "a span is there twice"
    services = {it: process["serviceName"] for it, process in trace["processes"].items()}
    return {
        span["spanID"]: _read_span(span, services[span["processID"]]) for span in trace["spans"]
    }


def _read_span(span: dict[str, Any], service: str) -> Shown:
    assert not span["warnings"], span["warnings"]
    references = [(it["refType"], it["traceID"], it["spanID"]) for it in span["references"]]
    parents = [span_id for kind, _, span_id in references if kind == "CHILD_OF"]
    return Shown(
        service=service,
        name=span["operationName"],
        start=span["startTime"],
        duration=span["duration"],
        parent=parents[0] if parents else "",
        tags=_read_values(span["tags"]),
        links=[(trace_id, span_id) for kind, trace_id, span_id in references if kind != "CHILD_OF"],
        events=[(log["timestamp"], _read_values(log["fields"])) for log in span["logs"]],
    )


def _read_values(pairs: list[dict[str, Any]]) -> dict[str, object]:
    read = {pair["key"]: _read_value(pair) for pair in pairs}
    assert len(read) == len(pairs)
    return {key: value for key, value in read.items() if key not in SCOPE}


def _read_value(pair: dict[str, Any]) -> object:
    value, kind = pair["value"], pair["type"]
    expected = {"string": str, "bool": bool, "int64": int, "float64": int | float}[kind]
    assert isinstance(value, expected)
    return _parse_array(pair["key"], value)


def _parse_array(name: str, value: object) -> object:
    """Return an array that is stored as its JSON text, as Jaeger stores all of them."""
    is_text = not isinstance(value, str) or name in TEXTS or not value.startswith("[")
    return value if is_text else json.loads(value)


def expect(span: Span) -> Shown:
    """Return a span of whence as Jaeger has to show it."""
    tags = _expect_values(span.attributes) | {"span.kind": KINDS[span.kind]}
    if span.status.code == Status.STATUS_CODE_ERROR:
        tags |= {"otel.status_code": "ERROR", "error": True}
        if span.status.message:
            tags["otel.status_description"] = span.status.message
    if span.trace_state:
        tags["w3c.tracestate"] = span.trace_state
    start = span.start_time_unix_nano // 1_000
    return Shown(
        service=SERVICE,
        name=span.name,
        start=start,
        duration=(span.end_time_unix_nano - span.start_time_unix_nano) // 1_000,
        parent=span.parent_span_id.hex(),
        tags=tags,
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        events=[
            (event.time_unix_nano // 1_000, {"event": event.name, **mapping(event.attributes)})
            for event in span.events
        ],
    )


def _expect_values(attributes: list[KeyValue]) -> dict[str, object]:
    # Content is JSON text already.
    return {key: _parse_array(key, value) for key, value in mapping(attributes).items()}
