"""Spans and log records read back from their bytes, as a collector would."""

import math

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from telemetry_journal import MemoryJournal

from whence_server.telemetry.spans.encoder import SpanEncoder


async def encoded(journal: MemoryJournal, **options: object) -> list[bytes]:
    encoder = SpanEncoder(journal, **options)
    return [span for entry in journal.entries for span in await encoder.encode(entry)]


async def spans_of(journal: MemoryJournal, **options: object) -> list[Span]:
    return [only_span(piece) for piece in await encoded(journal, **options)]


def only_span(piece: bytes) -> Span:
    (span,) = ScopeSpans.FromString(piece).spans
    return span


def value_of(value: AnyValue) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return mapping(value.kvlist_value.values)
    # A value without a kind is null.
    return None if kind is None else getattr(value, kind)


def mapping(pairs: list[KeyValue]) -> dict[str, object]:
    keys = [pair.key for pair in pairs]
    assert len(keys) == len(set(keys))
    return {pair.key: value_of(pair.value) for pair in pairs}


def attributes(span: Span) -> dict[str, object]:
    return mapping(span.attributes)


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


def times(span: Span) -> tuple[int, int]:
    return span.start_time_unix_nano, span.end_time_unix_nano


def assert_apart(siblings: list[Span]) -> None:
    """Assert that there is at least a microsecond between siblings."""
    ended = -math.inf
    for start, end in sorted(map(times, siblings)):
        assert start - ended >= 1_000
        assert end > start
        ended = end


def assert_within_parents(spans: list[Span]) -> None:
    by_id = {span.span_id: span for span in spans}
    assert len(by_id) == len(spans)
    for span in spans:
        if span.kind != Span.SPAN_KIND_SERVER:
            parent = by_id[span.parent_span_id]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
