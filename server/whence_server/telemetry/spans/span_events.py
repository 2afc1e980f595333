"""Events of the GenAI span: the first token, occurrences, and the stops of sequences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from whence.v1.generation_pb2 import (
    FinishReason,
    GenerationFinished,
    GenerationStarted,
    SequenceResult,
)
from whence.v1.occurrence_pb2 import Occurrence
from whence.v1.step_pb2 import Step
from whence_server.telemetry.otlp.attributes import AttributeValue, encode_attributes
from whence_server.telemetry.spans import names
from whence_server.telemetry.spans.bounds import SequenceBounds
from whence_server.telemetry.spans.finish_reasons import get_reason_name
from whence_server.telemetry.spans.occurrences import make_occurrence_event

MAX_EVENTS = 128
"""Events of one span: the default limit of OpenTelemetry's SDKs."""
_STOPPED = frozenset({FinishReason.FINISH_REASON_END_OF_SEQUENCE, FinishReason.FINISH_REASON_STOP})


def make_generation_events(
    started: GenerationStarted,
    finished: GenerationFinished,
    bounds: Mapping[int, SequenceBounds],
    occurrences: Iterable[Occurrence],
    *,
    content: bool = False,
) -> list[Span.Event]:
    """Make the events of a GenAI span in order of time, without that of a failure.

    Args:
        started: the generation's start.
        finished: the generation's end.
        bounds: first and last step of each sequence.
        occurrences: the generation's occurrences, in order.
        content: put tokens' texts on the events.
    """
    happened = [make_occurrence_event(occurrence) for occurrence in occurrences]
    events = [
        *_make_first_token(started, bounds, content=content),
        *(event for event in happened if event is not None),
        *_make_stops(started, finished, bounds, content=content),
    ]
    # The sort is stable: events of one time keep this order.
    return sorted(events, key=lambda event: event.time_unix_nano)


def select_events(events: Sequence[Span.Event], limit: int = MAX_EVENTS) -> list[Span.Event]:
    """Return the first and the last events, at most `limit`."""
    if len(events) <= limit:
        return list(events)
    num_last = limit // 2
    return [*events[: limit - num_last], *events[len(events) - num_last :]]


def _make_first_token(
    started: GenerationStarted, bounds: Mapping[int, SequenceBounds], *, content: bool
) -> Iterator[Span.Event]:
    if not bounds or started.effective_decoding.HasField("beam_search"):
        return
    step = min((bound.first for bound in bounds.values()), key=lambda it: it.timing.elapsed_ns)
    attributes = _make_token_attributes(step)
    if content and step.text:
        attributes[names.TOKEN_TEXT] = step.text
    yield _make_step_event(names.FIRST_TOKEN, started, step, attributes)


def _make_stops(
    started: GenerationStarted,
    finished: GenerationFinished,
    bounds: Mapping[int, SequenceBounds],
    *,
    content: bool,
) -> Iterator[Span.Event]:
    for result in finished.sequences:
        bound = bounds.get(result.sequence_index)
        if bound is None or result.finish_reason not in _STOPPED:
            continue
        attributes = _make_token_attributes(bound.last) | {
            names.STEP_INDEX: bound.last.index,
            names.GENERATION_FINISH_REASON: get_reason_name(result.finish_reason),
        }
        if _has_stop_string(started, result):
            # The caller or the model's files set it: it is among the request's attributes, too.
            attributes[names.STOP_STRING] = result.stop
        elif content and result.stop:
            attributes[names.TOKEN_TEXT] = result.stop
        yield _make_step_event(names.SEQUENCE_STOPPED, started, bound.last, attributes)


def _has_stop_string(started: GenerationStarted, result: SequenceResult) -> bool:
    """Return whether a stop string ended the sequence, and not a token with the same record."""
    is_stop = result.finish_reason == FinishReason.FINISH_REASON_STOP
    return is_stop and result.stop in started.effective_decoding.stop


def _make_token_attributes(step: Step) -> dict[str, AttributeValue | None]:
    return {
        names.SEQUENCE_INDEX: step.sequence_index,
        names.TOKEN_ID: step.token_id if step.HasField("token_id") else None,
    }


def _make_step_event(
    name: str,
    started: GenerationStarted,
    step: Step,
    attributes: Mapping[str, AttributeValue | None],
) -> Span.Event:
    time_ns = started.start_time.ToNanoseconds() + max(step.timing.elapsed_ns, 0)
    return Span.Event(time_unix_nano=time_ns, name=name, attributes=encode_attributes(attributes))
