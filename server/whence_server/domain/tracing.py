"""Position of a request in a distributed trace (W3C Trace Context)."""

from dataclasses import dataclass

SAMPLED = 0x01


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Ids of the request's SERVER span, and of its parent span as the caller sent it.

    Ids are lower-case hex: 32 digits for the trace, 16 for a span.
    """

    trace_id: str
    span_id: str
    parent_span_id: str = ""
    trace_flags: int = SAMPLED
    trace_state: str = ""

    @property
    def sampled(self) -> bool:
        """True if the request's spans are sampled."""
        return bool(self.trace_flags & SAMPLED)
