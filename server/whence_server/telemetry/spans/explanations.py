"""`explain` spans: one for each explanation on record, linked to the step that it explains."""

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.summary.explanations import name_method
from whence.v1.explanation_pb2 import ExplanationTrust, TrustVerdict
from whence.v1.occurrence_pb2 import Occurrence
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.spans import explanation_names as own
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.ids import parse_hex_id
from whence_server.telemetry.spans.origin import Origin


def make_explanation_span(
    origin: Origin, occurrence: Occurrence, *, has_step_span: bool
) -> Span | None:
    """Make the span of an explanation, in the trace of its call; None of another occurrence.

    The call has no span of its own, so that the job's span has its id.

    Args:
        origin: the generation's place in its trace.
        occurrence: the occurrence.
        has_step_span: True if the first explained step has a span of its own.

    Raises:
        ValueError: the ids of the call are no W3C ids.
    """
    if not occurrence.HasField("explained"):
        return None
    caller, found = occurrence.explained.caller, occurrence.explained.explanation
    end_ns = max(occurrence.time.ToNanoseconds(), 0)
    span = found.span
    linked = (
        origin.ids.get_decode_step_id(span.sequence_index, span.begin_step)
        if has_step_span
        else origin.ids.get_decode_id(span.sequence_index)
    )
    attributes: dict[str, AttributeValue | None] = {
        names.GENERATION_ID: origin.generation_id,
        names.SEQUENCE_INDEX: span.sequence_index,
        names.STEP_INDEX: span.begin_step,
        names.WEIGHTS_DIGEST: found.weights_digest or None,
        own.EXPLANATION_METHOD: name_method(found.method),
        own.EXPLANATION_METHOD_VERSION: found.method_version,
        own.EXPLANATION_NUM_STEPS: span.end_step - span.begin_step,
        own.EXPLANATION_NUM_SEGMENTS: len(found.segments),
        own.EXPLANATION_NUM_PASSES: found.num_passes,
        own.EXPLANATION_VALUE: span.value,
        own.EXPLANATION_IS_CONTRAST: bool(span.against_token_ids),
        own.EXPLANATION_LINKED_TRACE_ID: origin.trace_id.hex(),
        own.EXPLANATION_LINKED_SPAN_ID: linked.hex(),
        **(_describe_trust(found.trust) if found.HasField("trust") else {}),
    }
    return Span(
        trace_id=parse_hex_id(caller.trace_id, 16),
        span_id=parse_hex_id(caller.span_id, 8),
        parent_span_id=bytes.fromhex(caller.parent_span_id),
        flags=origin.span_flags,
        name=own.EXPLAIN,
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=max(end_ns - round(found.elapsed_seconds * 1e9), 0),
        end_time_unix_nano=end_ns,
        attributes=encode_attributes(attributes),
        links=[Span.Link(trace_id=origin.trace_id, span_id=linked, flags=origin.span_flags)],
    )


def _describe_trust(trust: ExplanationTrust) -> dict[str, AttributeValue | None]:
    verdict = TrustVerdict.DESCRIPTOR.values_by_number.get(trust.verdict)
    return {
        own.EXPLANATION_TRUST: str(trust.verdict)
        if verdict is None
        else verdict.name.removeprefix("TRUST_VERDICT_").lower(),
        own.EXPLANATION_CORRELATION: trust.correlation,
        own.EXPLANATION_CORRELATION_LOW: trust.correlation_low,
        own.EXPLANATION_CORRELATION_HIGH: trust.correlation_high,
    }
