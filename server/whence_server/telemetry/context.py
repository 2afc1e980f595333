"""Trace context of an incoming call: its trace id, parent span and sampling decision."""

from collections.abc import Iterable

from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision, Sampler
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from whence_server.domain.tracing import SAMPLED, TraceContext

_PROPAGATOR = TraceContextTextMapPropagator()
_IDS = RandomIdGenerator()


def read_trace_context(
    metadata: Iterable[tuple[str, str | bytes]],
    method: str = "",
    sampler: Sampler = DEFAULT_ON,
) -> TraceContext:
    """Read a call's `traceparent` and `tracestate`, and choose the id of its SERVER span.

    A missing, malformed or repeated parent starts a new trace, as W3C Trace Context requires. The
    caller's `baggage` is ignored: the server makes no call that could propagate it, and it may
    hold secrets, so it is neither recorded nor put into a span.

    Args:
        metadata: the call's gRPC metadata.
        method: fully qualified method name; the SERVER span's name, which samplers may use.
        sampler: decides whether the trace is sampled. The default follows the parent's flag, and
            samples every new trace.
    """
    carrier: dict[str, list[str]] = {}
    for key, value in metadata:
        if isinstance(value, str):
            carrier.setdefault(key.lower(), []).append(value)
    if len(carrier.get("traceparent", ())) > 1:
        del carrier["traceparent"]  # ambiguous: the trace has one parent
    parent_context = _PROPAGATOR.extract(carrier)
    parent = trace.get_current_span(parent_context).get_span_context()
    trace_id = parent.trace_id if parent.is_valid else _IDS.generate_trace_id()
    result = sampler.should_sample(
        parent_context, trace_id, method, trace.SpanKind.SERVER, trace_state=parent.trace_state
    )
    sampled = SAMPLED if result.decision is Decision.RECORD_AND_SAMPLE else 0
    state = result.trace_state
    return TraceContext(
        trace_id=trace.format_trace_id(trace_id),
        span_id=trace.format_span_id(_IDS.generate_span_id()),
        parent_span_id=trace.format_span_id(parent.span_id) if parent.is_valid else "",
        trace_flags=(int(parent.trace_flags) & ~SAMPLED) | sampled,
        trace_state=state.to_header() if state else "",
    )
