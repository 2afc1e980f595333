"""Metrics of a training run, recorded through the OpenTelemetry SDK."""

import math
from typing import Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource

from whence.v1.training_pb2 import Evaluation, TrainingEvent, TrainingStep
from whence_server.domain.telemetry import PushOptions
from whence_server.telemetry.metrics.catalogue import Definition, Kind
from whence_server.telemetry.metrics.push import choose_temporality
from whence_server.telemetry.otlp.scope import SCOPE
from whence_server.telemetry.training import names
from whence_server.telemetry.training.gauges import Gauges, NonFiniteExporter

_RUN = (names.TRAINING_RUN_NAME,)
_STEP_SECONDS: Final = tuple(0.001 * 2**i for i in range(18))

LOSS: Final = Definition(
    "whence.training.loss", Kind.GAUGE, "{nat}", "Mean loss per token of the newest step.", _RUN
)
GRAD_NORM: Final = Definition(
    "whence.training.grad_norm",
    Kind.GAUGE,
    "1",
    "Norm of the gradient of the newest step, before clipping.",
    _RUN,
)
LEARNING_RATE: Final = Definition(
    "whence.training.learning_rate", Kind.GAUGE, "1", "Learning rate of the newest step.", _RUN
)
THROUGHPUT: Final = Definition(
    "whence.training.throughput",
    Kind.GAUGE,
    "{token}/s",
    "Tokens of the newest step divided by its duration, which includes waiting for data.",
    _RUN,
)
TOKENS: Final = Definition(
    "whence.training.tokens", Kind.COUNTER, "{token}", "Tokens trained on by this process.", _RUN
)
STEP_DURATION: Final = Definition(
    "whence.training.step.duration",
    Kind.HISTOGRAM,
    "s",
    "Time from the end of one optimizer step to the end of the next.",
    _RUN,
    _STEP_SECONDS,
)
EVALUATION_LOSS: Final = Definition(
    "whence.training.evaluation.loss",
    Kind.GAUGE,
    "{nat}",
    "`eval_loss` of the newest evaluation.",
    _RUN,
)
NON_FINITE: Final = Definition(
    "whence.training.non_finite",
    Kind.COUNTER,
    "{value}",
    "Values of steps and evaluations that are NaN or infinite; `whence.training.quantity` "
    "names the quantity: loss, grad_norm, learning_rate or evaluation_loss.",
    (*_RUN, names.TRAINING_QUANTITY),
)
ALL: Final = (
    LOSS,
    GRAD_NORM,
    LEARNING_RATE,
    THROUGHPUT,
    TOKENS,
    STEP_DURATION,
    EVALUATION_LOSS,
    NON_FINITE,
)
_QUANTITIES: Final = {
    LOSS: "loss",
    GRAD_NORM: "grad_norm",
    LEARNING_RATE: "learning_rate",
    EVALUATION_LOSS: "evaluation_loss",
}


class TrainingMetrics:
    """Recorder of a run's metrics from the events of its record.

    Args:
        resource: resource of the process.
        version: version of whence, for the instrumentation scope.
        exporter: receives the metrics at an interval and at the end; shut down by `close`.
        options: interval and temporality of the push.
    """

    def __init__(
        self, resource: Resource, version: str, exporter: MetricExporter, options: PushOptions
    ) -> None:
        self._gauges = Gauges(it for it in ALL if it.kind is Kind.GAUGE)
        reader: MetricReader = PeriodicExportingMetricReader(
            NonFiniteExporter(exporter, self._gauges, choose_temporality(options.preference)),
            options.interval_s * 1e3,
        )
        self._provider = MeterProvider(
            metric_readers=[reader],
            resource=resource,
            views=[
                View(
                    instrument_name=STEP_DURATION.name,
                    aggregation=ExplicitBucketHistogramAggregation(STEP_DURATION.boundaries),
                )
            ],
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter(SCOPE, version)
        self._gauges.observe(meter)
        self._tokens = meter.create_counter(TOKENS.name, TOKENS.unit, TOKENS.description)
        self._non_finite = meter.create_counter(
            NON_FINITE.name, NON_FINITE.unit, NON_FINITE.description
        )
        self._duration = meter.create_histogram(
            STEP_DURATION.name, STEP_DURATION.unit, STEP_DURATION.description
        )
        self._attributes: dict[str, str] = {}

    def record(self, event: TrainingEvent) -> None:
        """Record an event; the first one is the run's start."""
        match event.WhichOneof("event"):
            case "started":
                self._attributes = {names.TRAINING_RUN_NAME: event.started.name}
                self._gauges.attributes = self._attributes
                for quantity in _QUANTITIES.values():
                    # Counters begin with a 0, without which no increase is visible.
                    self._count_non_finite(quantity, 0)
            case "step":
                self._record_step(event.step)
            case "evaluation":
                self._record_evaluation(event.evaluation)

    def close(self, timeout_s: float) -> bool:
        """Push a last time; return False if that failed or time ran out."""
        sent = self._provider.force_flush(timeout_s * 1e3)
        self._provider.shutdown(timeout_s * 1e3)
        return sent

    def _record_step(self, step: TrainingStep) -> None:
        self._set(LOSS, step.loss)
        self._set(LEARNING_RATE, step.learning_rate)
        if step.HasField("grad_norm"):
            self._set(GRAD_NORM, step.grad_norm)
        self._tokens.add(step.num_tokens, self._attributes)
        if step.duration_ns > 0:
            seconds = step.duration_ns / 1e9
            self._set(THROUGHPUT, step.num_tokens / seconds)
            self._duration.record(seconds, self._attributes)

    def _record_evaluation(self, evaluation: Evaluation) -> None:
        for name, value in evaluation.metrics.items():
            if name == "eval_loss":
                self._set(EVALUATION_LOSS, value)
            elif name.endswith("loss") and not math.isfinite(value):
                self._count_non_finite(_QUANTITIES[EVALUATION_LOSS], 1)

    def _set(self, gauge: Definition, value: float) -> None:
        """Set a gauge, also to NaN, and count values that are not finite."""
        self._gauges.set(gauge, value)
        if gauge in _QUANTITIES and not math.isfinite(value):
            self._count_non_finite(_QUANTITIES[gauge], 1)

    def _count_non_finite(self, quantity: str, number: int) -> None:
        attributes = {**self._attributes, names.TRAINING_QUANTITY: quantity}
        self._non_finite.add(number, attributes)
