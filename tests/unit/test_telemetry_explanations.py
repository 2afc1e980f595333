"""The span of an explanation: in the trace of its call, linked to the step that it explains."""

import pytest
from eventful import make_explanation
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from span_reading import attributes, named, spans_of, times
from telemetry_journal import MemoryJournal, finished, occurrence, started, step

from whence.v1 import occurrence_pb2 as o
from whence_server.domain.entries import EntryKind
from whence_server.domain.telemetry import StepForm

CALLER = o.Caller(
    method="whence.v1.ExplainService/Explain",
    trace_id="c" * 32,
    span_id="d" * 16,
    parent_span_id="e" * 16,
    address="192.0.2.7",
)


def journal_of(*, flags: int = 1, begin_step: int = 1, is_running: bool = False) -> MemoryJournal:
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", flags=flags))
    for index in range(3):
        journal.append("g", EntryKind.STEP, step(index))
    explanation = make_explanation()
    explanation.span.begin_step, explanation.span.end_step = begin_step, begin_step + 2
    explained = o.GenerationExplained(caller=CALLER, explanation=explanation)
    entries = [
        (EntryKind.FINISHED, finished(3)),
        (EntryKind.OCCURRENCE, occurrence(900_000_000, explained=explained)),
    ]
    for kind, message in reversed(entries) if is_running else entries:
        journal.append("g", kind, message)
    return journal


async def explain_span(journal: MemoryJournal, **options: object) -> tuple[Span, list[Span]]:
    spans = await spans_of(journal, **options)
    (found,) = named(spans, "explain")
    return found, spans


@pytest.mark.parametrize("is_running", [False, True])
async def test_an_explanation_is_a_span_of_its_call_with_a_link_to_the_step(
    *, is_running: bool
) -> None:
    found, spans = await explain_span(journal_of(is_running=is_running))
    assert found.trace_id.hex() == "c" * 32
    assert (found.span_id.hex(), found.parent_span_id.hex()) == ("d" * 16, "e" * 16)
    begin, end = times(found)
    assert end - begin == 250_000_000
    step_span = named(spans, "decode_step")[1]
    (link,) = found.links
    assert (link.trace_id, link.span_id) == (step_span.trace_id, step_span.span_id)
    assert attributes(found) == {
        "whence.generation.id": "g",
        "whence.sequence.index": 0,
        "whence.step.index": 1,
        "whence.weights.digest": "ab" * 32,
        "whence.explanation.method": "leave-one-out",
        "whence.explanation.method_version": 1,
        "whence.explanation.num_steps": 2,
        "whence.explanation.num_segments": 1,
        "whence.explanation.num_passes": 2,
        "whence.explanation.value": -0.5,
        "whence.explanation.is_contrast": False,
        "whence.explanation.trust": "high",
        "whence.explanation.correlation": 0.75,
        "whence.explanation.correlation_low": 0.5,
        "whence.explanation.correlation_high": 0.875,
        "whence.explanation.linked_trace_id": step_span.trace_id.hex(),
        "whence.explanation.linked_span_id": step_span.span_id.hex(),
    }
    (whole,) = [span for span in spans if span.name.startswith("text_completion")]
    assert all("explain" not in event.name for event in whole.events)


@pytest.mark.parametrize("options", [{"step_spans": 1}, {"step_form": StepForm.EVENTS}])
async def test_a_step_without_a_span_is_linked_by_its_sequence(options: dict[str, object]) -> None:
    found, spans = await explain_span(journal_of(), **options)
    assert found.links[0].span_id == named(spans, "decode")[0].span_id


async def test_an_unsampled_generation_has_no_span_of_its_explanation() -> None:
    assert await spans_of(journal_of(flags=0)) == []
