"""What comes before the first token: the `queue` and `prefill` spans."""

from collections.abc import Iterable

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.generation_pb2 import GenerationFinished
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.children import child_span
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.steps import SIBLING_GAP_NS


def phase_spans(
    origin: Origin, finished: GenerationFinished, decodes: Iterable[Span] = ()
) -> list[Span]:
    """Make the `queue` and `prefill` spans, each where it was, and is known.

    Neither touches what follows it: a phase ends 1 us early, and one that has less than that
    for itself is left out. After a crash no queueing is on record, and the prefill's end is
    that of the first token, so it is cut to where the tokens begin.

    Args:
        origin: the generation's.
        finished: its end, which has both durations.
        decodes: its `decode` spans.
    """
    arrival = origin.start_time_ns
    began = arrival + max(finished.queue_ns, 0)
    read = began + max(finished.prefill_ns, 0)
    never_began = not finished.prefill_ns and not finished.decode_ns
    never_read = not finished.decode_ns
    tokens_begin = min((decode.start_time_unix_nano for decode in decodes), default=None)
    spans = []
    if finished.queue_ns > 0:
        end = _before(began, tokens_begin, last=tokens_begin is None and never_began)
        times = (arrival, max(arrival, end))
        spans.append(child_span(origin, names.QUEUE, origin.ids.queue(), {}, times=times))
    if not never_began:
        end = _before(read, tokens_begin, last=tokens_begin is None and never_read)
        chunks = finished.num_prefill_chunks if finished.HasField("num_prefill_chunks") else None
        attributes: dict[str, AttributeValue | None] = {
            names.PREFILL_NUM_TOKENS: finished.num_prompt_tokens,
            names.PREFILL_NUM_CHUNKS: chunks,
        }
        times = (began, max(began, end))
        spans.append(
            child_span(origin, names.PREFILL, origin.ids.prefill(), attributes, times=times)
        )
    return [s for s in spans if s.end_time_unix_nano - s.start_time_unix_nano >= SIBLING_GAP_NS]


def _before(end: int, tokens_begin: int | None, *, last: bool) -> int:
    """Where a phase's span ends: short of whatever comes next, unless nothing does."""
    if last:
        return end
    return (end if tokens_begin is None else min(end, tokens_begin)) - SIBLING_GAP_NS
