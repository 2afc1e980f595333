"""Parts of a sequence's events, and the `decode` spans that hold them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence.v1.step_pb2 import Step
from whence_server.telemetry.otlp.wire import encode_length_delimited
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.children import make_child_span
from whence_server.telemetry.spans.origin import Origin


@dataclass(slots=True)
class Part:
    """Events of consecutive steps of one sequence."""

    number: int
    first_index: int
    start: int
    """Start of the first step in Unix nanoseconds."""
    last_index: int = -1
    end: int = 0
    """End of the last step in Unix nanoseconds."""
    num_steps: int = 0
    num_bytes: int = 0
    events: list[bytes] | None = field(default_factory=list)
    """None if they were dropped: they are made again from the journal when they are needed."""

    def add(self, step: Step, end: int, events: bytes) -> None:
        """Add the next step.

        Args:
            step: the step.
            end: its end in Unix nanoseconds.
            events: its serialised events.
        """
        self.last_index, self.end = step.index, max(self.end, end)
        self.num_steps += 1
        self.num_bytes += len(events)
        if self.events is not None:
            self.events.append(events)


@dataclass(slots=True)
class Parts:
    """First and newest part of a sequence; those between were sent when they were full."""

    first: Part
    newest: Part

    @property
    def num_parts(self) -> int:
        """Number of parts so far."""
        return self.newest.number + 1

    def list_parts(self) -> tuple[Part, ...]:
        """Return the parts, each once."""
        return (self.first,) if self.first is self.newest else (self.first, self.newest)

    def count_kept_bytes(self) -> int:
        """Return the bytes of the events that are in memory."""
        return sum(part.num_bytes for part in self.list_parts() if part.events is not None)


def encode_part_span(origin: Origin, sequence_index: int, part: Part) -> bytes:
    """Serialise a further `decode` span, a child of the sequence's first, as a ScopeSpans message.

    Args:
        origin: the generation's place in its trace.
        sequence_index: index of the sequence.
        part: the part, not the sequence's first.
    """
    span = make_child_span(
        origin,
        names.DECODE,
        origin.ids.get_decode_part_id(sequence_index, part.number),
        {
            names.SEQUENCE_INDEX: sequence_index,
            names.DECODE_PART: part.number,
            names.DECODE_FIRST_INDEX: part.first_index,
            names.DECODE_LAST_INDEX: part.last_index,
        },
        times=(part.start, part.end),
        parent_span_id=origin.ids.get_decode_id(sequence_index),
    )
    return encode_with_events(span, part.events or [])


def encode_decode_spans(
    origin: Origin, decodes: Mapping[int, Span], parts: Mapping[int, Parts]
) -> list[bytes]:
    """Serialise the sequences' `decode` spans with their events, and the further ones not yet sent.

    Args:
        origin: the generation's place in its trace.
        decodes: the span of each sequence that has steps.
        parts: first and newest part of sequences that have events.
    """
    spans = []
    for index, span in decodes.items():
        own = parts.get(index)
        spans.append(encode_with_events(span, (own.first.events or []) if own else []))
        if own is not None and own.newest is not own.first:
            spans.append(encode_part_span(origin, index, own.newest))
    return spans


def encode_with_events(span: Span, events: list[bytes]) -> bytes:
    """Serialise a span with encoded events as a ScopeSpans message that holds it alone.

    Args:
        span: the span, without events, links and status.
        events: serialised fields of a Span message.
    """
    return _encode_between(span, b"".join(events), Span(flags=span.flags))


def encode_with_attributes(span: Span, attributes: bytes) -> bytes:
    """Serialise a span with more, encoded attributes as a ScopeSpans message that holds it alone.

    Args:
        span: the span.
        attributes: serialised fields of a Span message.
    """
    after = Span(
        dropped_attributes_count=span.dropped_attributes_count,
        events=span.events,
        dropped_events_count=span.dropped_events_count,
        links=span.links,
        dropped_links_count=span.dropped_links_count,
        status=span.status if span.HasField("status") else None,
        flags=span.flags,
    )
    return _encode_between(span, attributes, after)


def _encode_between(span: Span, fields: bytes, after: Span) -> bytes:
    """Serialise a span with fields before those of `after`, its last ones.

    In the order of the fields' numbers, as protobuf writes them.
    """
    last = after.SerializeToString()
    whole = b"".join((span.SerializeToString().removesuffix(last), fields, last))
    return encode_length_delimited(ScopeSpans.SPANS_FIELD_NUMBER, whole)
