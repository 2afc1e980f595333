"""`queue` and `prefill` spans: the phases before a generation's first token."""

from collections.abc import Iterable

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.generation_pb2 import GenerationFinished
from whence_server.telemetry.otlp.attributes import AttributeValue
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.children import make_child_span
from whence_server.telemetry.spans.origin import Origin
from whence_server.telemetry.spans.steps import SIBLING_GAP_NS


def make_phase_spans(
    origin: Origin, finished: GenerationFinished, decodes: Iterable[Span] = ()
) -> list[Span]:
    """Make the `queue` and `prefill` spans of the phases that took place and are recorded.

    A phase's span ends 1 us early, so that it does not touch the next span; shorter phases have
    no span. After a crash no queueing is recorded, and the recorded prefill ends with the first
    token; its span is then truncated to the start of decoding.

    Args:
        origin: the generation's place in its trace.
        finished: the generation's end, which has both durations.
        decodes: the generation's `decode` spans.
    """
    arrival = origin.start_time_ns
    began = arrival + max(finished.queue_ns, 0)
    read = began + max(finished.prefill_ns, 0)
    never_began = not finished.prefill_ns and not finished.decode_ns
    never_read = not finished.decode_ns
    tokens_begin = min((decode.start_time_unix_nano for decode in decodes), default=None)
    spans = []
    if finished.queue_ns > 0:
        end = _end_before(began, tokens_begin, last=tokens_begin is None and never_began)
        times = (arrival, max(arrival, end))
        spans.append(
            make_child_span(origin, names.QUEUE, origin.ids.get_queue_id(), {}, times=times)
        )
    if not never_began:
        end = _end_before(read, tokens_begin, last=tokens_begin is None and never_read)
        chunks = finished.num_prefill_chunks if finished.HasField("num_prefill_chunks") else None
        attributes: dict[str, AttributeValue | None] = {
            names.PREFILL_NUM_TOKENS: finished.num_prompt_tokens,
            names.PREFILL_NUM_CHUNKS: chunks,
            names.PREFILL_NUM_CACHED_TOKENS: count_cached_tokens(finished),
        }
        times = (began, max(began, end))
        spans.append(
            make_child_span(
                origin, names.PREFILL, origin.ids.get_prefill_id(), attributes, times=times
            )
        )
    return [s for s in spans if s.end_time_unix_nano - s.start_time_unix_nano >= SIBLING_GAP_NS]


def count_cached_tokens(finished: GenerationFinished) -> int | None:
    """Return the number of prompt tokens found in the prefix cache; None if it is not recorded."""
    recorded = finished.HasField("num_cached_prompt_tokens")
    return finished.num_cached_prompt_tokens if recorded else None


def _end_before(end: int, tokens_begin: int | None, *, last: bool) -> int:
    """Return the end of a phase's span, with a gap before the next span unless it is the last."""
    if last:
        return end
    return (end if tokens_begin is None else min(end, tokens_begin)) - SIBLING_GAP_NS
