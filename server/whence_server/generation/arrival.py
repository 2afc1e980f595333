"""Arrival of a request."""

from dataclasses import dataclass

from whence_server.domain.tracing import TraceContext


@dataclass(frozen=True, slots=True)
class Arrival:
    """Time, trace context and caller of a request's arrival."""

    trace_context: TraceContext
    time_ns: int
    """Unix time in ns."""
    monotonic_ns: int
    caller_id: str = ""
    """Id of the caller, which owns the generation; "" without authentication."""
