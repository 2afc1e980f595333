"""Trace of a training run: spans, parents and times."""

import math
from collections import Counter
from itertools import pairwise

import pytest
import training_records as records
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from span_reading import assert_apart, assert_within_parents, attributes, named, times

from whence.v1.training_pb2 import TrainingEvent
from whence_server.telemetry.training import names
from whence_server.telemetry.training.stride import compute_stride, has_span
from whence_server.telemetry.training.trace import TrainingTrace


def spans_of(events: list[TrainingEvent], **options: int) -> list[Span]:
    trace = TrainingTrace(**options)
    return [span for event in events for span in trace.make_spans(event)]


def children(spans: list[Span], parent: Span) -> list[Span]:
    return [span for span in spans if span.parent_span_id == parent.span_id]


def test_a_run_is_one_trace_with_the_ids_on_record() -> None:
    spans = spans_of(records.whole_run())
    assert {span.trace_id.hex() for span in spans} == {records.TRACE_ID}
    (root,) = (span for span in spans if not span.parent_span_id)
    assert (root.name, root.span_id.hex()) == ("training_run", records.SPAN_ID)
    assert {attributes(span)["whence.training.run_id"] for span in spans} == {records.RUN}
    assert Counter(span.name for span in spans) == {
        "training_run": 1,
        "training_attempt": 1,
        "epoch": 2,
        "optimizer_step": 8,
        "evaluation": 2,
        "checkpoint": 2,
    }


def test_every_span_is_within_its_parent_and_siblings_are_apart() -> None:
    spans = spans_of(records.whole_run())
    root = spans[-1]
    assert_within_parents([span for span in spans if span is not root] + [_as_server(root)])
    for parent in spans:
        assert_apart(children(spans, parent))
    (attempt,) = children(spans, root)
    epochs = children(spans, attempt)
    assert [attributes(epoch)["whence.training.epoch.number"] for epoch in epochs] == [1, 2]
    assert [span.name for span in children(spans, epochs[0])] == [
        *["optimizer_step"] * 4,
        "evaluation",
        "checkpoint",
    ]


def test_a_step_span_says_what_is_on_record() -> None:
    events = records.whole_run()
    spans = spans_of(events)
    span = named(spans, "optimizer_step")[2]
    step = next(e.step for e in events if e.WhichOneof("event") == "step" and e.step.step == 3)
    start, end = times(span)
    assert end == records.START_NS + 1_000_000 + step.elapsed_ns
    assert end - start == step.duration_ns - 1_000
    assert attributes(span) == {
        "whence.training.run_id": records.RUN,
        "whence.training.attempt": 1,
        "whence.training.summary": f"step 3: loss {step.loss:.3g}, learning rate 0.001, "
        "gradient norm 1.5, 32 tokens",
        "whence.training.step.number": 3,
        "whence.training.step.epoch": 0.75,
        "whence.training.step.stride": 1,
        "whence.training.loss": step.loss,
        "whence.training.learning_rate": 1e-3,
        "whence.training.grad_norm": 1.5,
        "whence.training.step.num_tokens": 32,
        "whence.training.num_tokens_seen": 96,
        "whence.training.step.num_examples": 2,
        "whence.training.step.example_ids": [6, 7],
        "whence.training.step.update_norms": [0.25, 0.5],
        "whence.training.step.weight_norms": [2.0, 3.0],
    }


def test_the_root_and_the_epochs_sum_up() -> None:
    spans = spans_of(records.whole_run())
    root = attributes(spans[-1])
    assert root["whence.training.dataset.merkle_root"] == "ab" * 32
    assert root["whence.training.groups.names"] == ["embedding", "head"]
    assert root["whence.training.state"] == "completed"
    assert root["whence.weights.digest"] == "ef" * 32
    first = attributes(named(spans, "epoch")[0])
    assert first["whence.training.epoch.num_steps"] == 4
    assert first["whence.training.epoch.num_tokens"] == 128
    expected = math.fsum(4.0 / number for number in range(1, 5)) / 4
    assert first["whence.training.epoch.mean_loss"] == pytest.approx(expected)
    evaluation = attributes(named(spans, "evaluation")[0])
    assert evaluation["whence.training.evaluation.eval_loss"] == 2.5
    assert "whence.training.evaluation.eval_runtime" not in evaluation, "not a number"
    assert attributes(named(spans, "checkpoint")[1])["whence.weights.digest"] == "ef" * 32


def test_every_span_of_a_training_has_a_summary() -> None:
    spans = spans_of(records.whole_run())
    lines = [attributes(span)["whence.training.summary"] for span in spans]
    assert all(lines)
    attempt = attributes(named(spans, "training_attempt")[0])
    assert attempt["whence.training.summary"].startswith("attempt 1: ")
    assert lines[-1].startswith(f'"{records.whole_run()[0].started.name}": completed, step ')


def test_what_is_not_finite_is_left_out_and_named() -> None:
    events = [records.started(), records.attempt(), records.step(1)]
    events[-1].step.loss = math.nan
    events[-1].step.grad_norm = math.inf
    events[-1].step.update_norms[0] = math.nan
    events += [records.evaluation(1), records.finished(1)]
    spans = spans_of(events)
    (span,) = named(spans, "optimizer_step")
    there = attributes(span)
    assert "whence.training.loss" not in there
    assert "whence.training.grad_norm" not in there
    assert "whence.training.step.update_norms" not in there
    assert there["whence.training.step.weight_norms"] == [2.0, 3.0]
    assert there["whence.training.non_finite"] == [
        "whence.training.loss",
        "whence.training.grad_norm",
        "whence.training.step.update_norms",
    ]
    (evaluation,) = named(spans, "evaluation")
    assert attributes(evaluation)["whence.training.non_finite"] == [
        "whence.training.evaluation.eval_runtime"
    ]
    (epoch,) = named(spans, "epoch")
    assert attributes(epoch)["whence.training.epoch.num_non_finite"] == 1
    assert "whence.training.epoch.mean_loss" not in attributes(epoch)


def test_an_attempt_that_was_killed_is_closed_by_the_next_one() -> None:
    events = [records.started(), records.attempt(), records.step(1), records.step(2)]
    # The clock went back meanwhile.
    events += [records.attempt(2, resumed_step=1, offset_ns=-50_000_000)]
    events += [records.step(2, 2), records.finished(2, 2)]
    spans = spans_of(events)
    assert len({span.span_id for span in spans}) == len(spans)
    attempts = named(spans, "training_attempt")
    assert [attributes(span)["whence.training.state"] for span in attempts] == [
        "killed",
        "completed",
    ]
    assert attributes(attempts[1])["whence.training.resumed_step"] == 1
    assert_apart(attempts)
    for epoch in named(spans, "epoch"):
        assert_apart(children(spans, epoch))
    assert len(named(spans, "training_run")) == 1


def test_weights_saved_after_the_end_are_the_runs_own_and_the_root_grows() -> None:
    events = [records.started(), records.attempt(), records.step(1), records.finished(1)]
    events.append(records.checkpoint(1))
    events[-1].checkpoint.elapsed_ns = 100 * records.STEP_NS
    *_, first_root, saved, root = spans_of(events)
    assert saved.name == "checkpoint"
    assert saved.parent_span_id == root.span_id == first_root.span_id
    assert times(root) == (times(first_root)[0], times(saved)[1])
    assert root.attributes == first_root.attributes


def test_unfinished_spans_can_be_closed_and_a_failure_sets_error_status() -> None:
    trace = TrainingTrace()
    for event in [records.started(), records.attempt(), records.step(1)]:
        trace.make_spans(event)
    assert [span.name for span in trace.make_closing_spans()] == [
        "epoch",
        "training_attempt",
        "training_run",
    ]
    assert trace.make_closing_spans() == []
    failed = records.finished(1, state="FAILED", error="out of memory")
    spans = spans_of([records.started(), records.attempt(), records.step(1), failed])
    error = Status(code=Status.STATUS_CODE_ERROR, message="out of memory")
    assert [span.name for span in spans if span.status == error] == [
        "training_attempt",
        "training_run",
    ]


@given(st.integers(1, 5_000), st.integers(1, 300))
def test_number_of_step_spans_of_a_planned_run_is_bounded(num_planned: int, cap: int) -> None:
    shown = [
        n for n in range(1, num_planned + 1) if has_span(n, compute_stride(n, num_planned, cap))
    ]
    assert shown[0] == 1
    assert len(shown) <= cap
    # Not fewer than half of what is allowed, and evenly.
    assert len(shown) >= min(num_planned, cap) / 2
    assert len({b - a for a, b in pairwise(shown)}) <= 1


@pytest.mark.parametrize(("num_steps", "at_most"), [(250, 250), (1_000, 500), (128_000, 1_400)])
def test_step_spans_of_an_unplanned_run_become_sparser(num_steps: int, at_most: int) -> None:
    shown = [n for n in range(1, num_steps + 1) if has_span(n, compute_stride(n, 0))]
    assert at_most * 0.7 <= len(shown) <= at_most


def test_the_example_ids_of_a_huge_batch_are_left_out() -> None:
    events = [records.started(), records.attempt(), records.step(1)]
    events[-1].step.ranks[0].example_ids[:] = range(257)
    there = attributes(spans_of(events)[0])
    assert there["whence.training.step.num_examples"] == 257
    assert names.TRAINING_STEP_EXAMPLE_IDS not in there


def _as_server(span: Span) -> Span:
    """The reader takes a span without a parent for a server's."""
    copy = Span()
    copy.CopyFrom(span)
    copy.kind = Span.SPAN_KIND_SERVER
    return copy
