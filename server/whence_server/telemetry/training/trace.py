"""Trace of a training run, made from the events of its record.

    training_run                 the root, with recorded ids
    └ training_attempt           one for each process that trained, one after another
      └ epoch                    the attempt's part of a pass over the training set
        ├ optimizer_step         one step in each stride
        ├ evaluation
        └ checkpoint

Times of an attempt are its start plus recorded elapsed times. Spans that follow one another never
touch, however the system's clock was set between two attempts.
"""

import math
from dataclasses import dataclass, field

from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from whence.summary import summarise_epoch
from whence.v1.training_pb2 import (
    AttemptFinished,
    AttemptStarted,
    TrainingDataset,
    TrainingEvent,
    TrainingRunStarted,
    TrainingState,
    TrainingStep,
)
from whence_server.telemetry.otlp.attributes import encode_attributes
from whence_server.telemetry.spans.ids import parse_hex_id
from whence_server.telemetry.spans.origin import HAS_IS_REMOTE
from whence_server.telemetry.spans.steps import SIBLING_GAP_NS
from whence_server.telemetry.training import names
from whence_server.telemetry.training.ids import (
    make_attempt_span_id,
    make_child_span_id,
    make_epoch_span_id,
)
from whence_server.telemetry.training.spans import (
    KILLED,
    Attributes,
    get_state_name,
    make_attempt_attributes,
    make_checkpoint_attributes,
    make_evaluation_attributes,
    make_run_attributes,
    make_step_attributes,
)
from whence_server.telemetry.training.stride import DEFAULT_STEP_SPANS, compute_stride, has_span

_SAMPLED = 0x01


@dataclass(slots=True)
class _Epoch:
    """State of the epoch under way."""

    number: int
    begin_ns: int
    first_step: int = 0
    num_steps: int = 0
    num_tokens: int = 0
    num_non_finite: int = 0
    losses: list[float] = field(default_factory=list)

    def add(self, step: TrainingStep) -> None:
        self.first_step = self.first_step or step.step
        self.num_steps += 1
        self.num_tokens += step.num_tokens
        if math.isfinite(step.loss):
            self.losses.append(step.loss)
        else:
            self.num_non_finite += 1

    def make_attributes(self) -> Attributes:
        losses = self.losses
        mean_loss = math.fsum(losses) / len(losses) if losses else None
        return {
            names.TRAINING_SUMMARY: summarise_epoch(
                self.number, self.num_steps, self.num_tokens, mean_loss, self.num_non_finite
            ),
            names.EPOCH_NUMBER: self.number,
            names.EPOCH_FIRST_STEP: self.first_step or None,
            names.EPOCH_NUM_STEPS: self.num_steps,
            names.EPOCH_NUM_TOKENS: self.num_tokens,
            names.EPOCH_NUM_NON_FINITE: self.num_non_finite or None,
            names.EPOCH_MEAN_LOSS: mean_loss,
        }


class TrainingTrace:
    """State of a trace, which returns the spans that each event of the record completes.

    The same events give byte-identical spans. The root is returned at each orderly end of an
    attempt. It is returned again, with a later end, if another attempt or weights saved after the
    training follow.

    Args:
        step_spans: most `optimizer_step` spans for the planned steps.
    """

    def __init__(self, step_spans: int = DEFAULT_STEP_SPANS) -> None:
        self._step_spans = step_spans
        self._started = TrainingRunStarted()
        self._dataset = TrainingDataset()
        self._attempt = AttemptStarted()
        self._ending: AttemptFinished | None = None
        self._under_way = False
        self._attempt_begin_ns = 0
        self._epoch: _Epoch | None = None
        self._last_ns = 0
        self._last_step = 0
        self._num_attempt_steps = 0
        self._nth: dict[tuple[str, int], int] = {}

    def make_spans(self, event: TrainingEvent) -> list[Span]:
        """Return the spans that an event completes; events come in order, from the first one.

        Raises:
            ValueError: the run's trace id or span id is not a W3C id.
        """
        match event.WhichOneof("event"):
            case "started":
                self._started = event.started
                parse_hex_id(event.started.trace_id, 16), parse_hex_id(event.started.span_id, 8)
                self._last_ns = event.started.start_time.ToNanoseconds()
            case "dataset":
                self._dataset = event.dataset
            case "attempt_started":
                return self._begin_attempt(event.attempt_started)
            case "step":
                return self._take_step(event.step)
            case "evaluation":
                evaluation = event.evaluation
                attributes = make_evaluation_attributes(evaluation)
                return self._take_after_step(
                    names.EVALUATION, evaluation.step, evaluation.elapsed_ns, attributes
                )
            case "checkpoint":
                checkpoint = event.checkpoint
                attributes = make_checkpoint_attributes(checkpoint)
                return self._take_after_step(
                    names.CHECKPOINT, checkpoint.step, checkpoint.elapsed_ns, attributes
                )
            case "attempt_finished":
                return self._finish(event.attempt_finished)
        return []

    def make_closing_spans(self) -> list[Span]:
        """Return the spans of an attempt without an end, whose process was killed."""
        if not self._under_way:
            return []
        return [*self._end_attempt(KILLED), self._make_root()]

    def _begin_attempt(self, attempt: AttemptStarted) -> list[Span]:
        killed = self._end_attempt(KILLED) if self._under_way else []
        self._attempt, self._ending, self._under_way = attempt, None, True
        self._nth = {}
        self._num_attempt_steps = 0
        begin = attempt.start_time.ToNanoseconds()
        self._attempt_begin_ns = max(begin, self._last_ns + SIBLING_GAP_NS)
        self._last_ns = self._attempt_begin_ns
        return killed

    def _take_step(self, step: TrainingStep) -> list[Span]:
        number = max(math.ceil(round(step.epoch, 6)), 1)
        ended = []
        if self._epoch is not None and self._epoch.number != number:
            ended = self._end_epoch()
        epoch = self._epoch = self._epoch or self._make_epoch(number)
        epoch.add(step)
        self._last_step = step.step
        self._num_attempt_steps += 1
        times = self._place(step.elapsed_ns, step.duration_ns)
        stride = compute_stride(step.step, self._started.num_planned_steps, self._step_spans)
        if not has_span(step.step, stride):
            return ended
        attributes = make_step_attributes(step, stride)
        return [*ended, self._make_child(names.OPTIMIZER_STEP, step.step, times, attributes)]

    def _take_after_step(
        self, name: str, step: int, elapsed_ns: int, attributes: Attributes
    ) -> list[Span]:
        if self._under_way and self._epoch is None:
            self._epoch = self._make_epoch(1)
        times = self._place(elapsed_ns)
        span = self._make_child(name, step, times, attributes)
        return [span] if self._under_way else [span, self._make_root()]

    def _finish(self, finished: AttemptFinished) -> list[Span]:
        self._last_ns = max(self._last_ns, finished.end_time.ToNanoseconds())
        self._ending = finished
        ending = self._end_attempt(get_state_name(finished.state))
        ending[-1].status.CopyFrom(self._make_status())
        return [*ending, self._make_root()]

    def _end_attempt(self, state: str) -> list[Span]:
        attempt, ended = self._attempt, self._end_epoch()
        span = self._make_span(
            names.TRAINING_ATTEMPT,
            make_attempt_span_id(self._started.training_run_id, attempt.attempt),
            parse_hex_id(self._started.span_id, 8),
            (self._attempt_begin_ns, max(self._last_ns, self._attempt_begin_ns + SIBLING_GAP_NS)),
            {
                names.TRAINING_ATTEMPT_NUMBER: attempt.attempt,
                **make_attempt_attributes(attempt, state, self._num_attempt_steps),
            },
        )
        self._under_way = False
        self._last_ns = span.end_time_unix_nano
        return [*ended, span]

    def _make_epoch(self, number: int) -> _Epoch:
        return _Epoch(number, self._last_ns + SIBLING_GAP_NS)

    def _end_epoch(self) -> list[Span]:
        epoch, self._epoch = self._epoch, None
        if epoch is None:
            return []
        run_id, attempt = self._started.training_run_id, self._attempt.attempt
        span = self._make_span(
            names.EPOCH,
            make_epoch_span_id(run_id, attempt, epoch.number),
            make_attempt_span_id(run_id, attempt),
            (epoch.begin_ns, self._last_ns),
            {names.TRAINING_ATTEMPT_NUMBER: attempt, **epoch.make_attributes()},
        )
        return [span]

    def _place(self, elapsed_ns: int, duration_ns: int | None = None) -> tuple[int, int]:
        """Return the start and end of a span, with a gap after the span before it."""
        earliest = self._last_ns + SIBLING_GAP_NS
        end = max(self._attempt.start_time.ToNanoseconds() + elapsed_ns, earliest + SIBLING_GAP_NS)
        start = earliest if duration_ns is None else max(earliest, end - duration_ns)
        self._last_ns = end
        return min(start, end - SIBLING_GAP_NS), end

    def _make_child(
        self, name: str, step: int, times: tuple[int, int], attributes: Attributes
    ) -> Span:
        """Make a child of the epoch under way; after an attempt's end, of the root."""
        run_id, attempt = self._started.training_run_id, self._attempt.attempt
        nth = self._nth.get((name, step), 0)
        self._nth[name, step] = nth + 1
        parent = parse_hex_id(self._started.span_id, 8)
        if self._epoch is not None:
            parent = make_epoch_span_id(run_id, attempt, self._epoch.number)
        return self._make_span(
            name,
            make_child_span_id(run_id, attempt, name, step, nth),
            parent,
            times,
            {names.TRAINING_ATTEMPT_NUMBER: attempt, **attributes},
        )

    def _make_root(self) -> Span:
        started, ending = self._started, self._ending
        state = KILLED if ending is None else get_state_name(ending.state)
        weights_digest = "" if ending is None else ending.weights_digest
        root = self._make_span(
            names.TRAINING_RUN,
            parse_hex_id(started.span_id, 8),
            b"",
            (started.start_time.ToNanoseconds(), self._last_ns),
            make_run_attributes(started, self._dataset, state, weights_digest, self._last_step),
        )
        root.status.CopyFrom(self._make_status())
        return root

    def _make_status(self) -> Status:
        ending = self._ending
        if ending is None or ending.state != TrainingState.TRAINING_STATE_FAILED:
            return Status()
        return Status(code=Status.STATUS_CODE_ERROR, message=ending.error)

    def _make_span(
        self,
        name: str,
        span_id: bytes,
        parent_span_id: bytes,
        times: tuple[int, int],
        attributes: Attributes,
    ) -> Span:
        run_id = self._started.training_run_id
        return Span(
            trace_id=parse_hex_id(self._started.trace_id, 16),
            span_id=span_id,
            parent_span_id=parent_span_id,
            flags=_SAMPLED | HAS_IS_REMOTE,
            name=name,
            kind=Span.SPAN_KIND_INTERNAL,
            start_time_unix_nano=times[0],
            end_time_unix_nano=times[1],
            attributes=encode_attributes({names.TRAINING_RUN_ID: run_id, **attributes}),
        )
