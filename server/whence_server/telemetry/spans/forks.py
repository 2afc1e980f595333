"""Attributes of a branch, and its link to its parent."""

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ids import SpanIds, parse_hex_id
from whence_server.telemetry.spans.origin import HAS_IS_REMOTE, IS_REMOTE


def make_fork_attributes(started: GenerationStarted) -> dict[str, AttributeValue | None]:
    """Return the attributes of a branch; nothing for every other generation."""
    if not started.HasField("fork"):
        return {}
    fork = started.fork
    return {
        names.FORK_PARENT_ID: fork.parent_generation_id,
        names.FORK_PARENT_TRACE_ID: fork.parent_trace_id or None,
        names.FORK_SEQUENCE_INDEX: fork.sequence_index,
        names.FORK_STEP: fork.step,
        names.FORK_NUM_FORCED_STEPS: fork.num_forced_steps,
        names.FORK_CHANGES_PROMPT: fork.changes_prompt,
        names.FORK_CHANGED_SETTINGS: list(fork.changed_settings) or None,
    }


def make_parent_links(started: GenerationStarted) -> list[Span.Link]:
    """Make a link to the GenAI span of a branch's parent, if its ids are recorded."""
    fork = started.fork
    try:
        trace_id = parse_hex_id(fork.parent_trace_id, 16)
    except ValueError:
        return []
    # Whether the parent was sampled is not known here: the span may not exist.
    span_id = SpanIds(trace_id, fork.parent_generation_id).get_generation_id()
    return [Span.Link(trace_id=trace_id, span_id=span_id, flags=HAS_IS_REMOTE | IS_REMOTE)]
