"""Histograms of steps' values, recorded without the SDK, whose instruments are too slow here.

One record of the SDK takes 7 us, and 14 us with two readers and an exemplar: three records at
5,000 steps a second would take a tenth to a fifth of a core. Here all three take 4 us. The SDK's
readers accept no further producer of metrics, so `MetricsReader` adds these to the collected ones.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple, cast

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
)

from whence.v1.step_pb2 import Step
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition
from whence_server.telemetry.spans.names import GEN_AI_REQUEST_MODEL
from whence_server.telemetry.spans.origin import Origin

_QUANTITIES = ("entropy", "surprise", "margin")
"""Names of the quantities, in the order of `catalogue.STEPS`."""


class StepHistograms:
    """Histograms of `catalogue.STEPS`, one of each for each model.

    Not thread-safe: record and collect in the event loop's thread.

    Args:
        start_time_ns: Unix time in nanoseconds from which they count.
    """

    def __init__(self, start_time_ns: int) -> None:
        self._start_time_ns = start_time_ns
        self._models: dict[str, ModelSteps] = {}

    def get_model_steps(self, model: str) -> "ModelSteps":
        """Return the histograms of a model."""
        steps = self._models.get(model)
        if steps is None:
            steps = self._models[model] = ModelSteps()
        return steps

    def make_metrics(self, time_ns: int) -> list[Metric]:
        """Return the cumulative histograms that have values, as of a Unix time in nanoseconds.

        Each bucket has its latest exemplar.
        """
        metrics = []
        for index, definition in enumerate(catalogue.STEPS):
            points = [
                steps.histograms[index].make_point(model, self._start_time_ns, time_ns)
                for model, steps in self._models.items()
                if steps.histograms[index].sum_of_counts
            ]
            if points:
                data = Histogram(points, AggregationTemporality.CUMULATIVE)
                metrics.append(
                    Metric(definition.name, definition.description, definition.unit, data)
                )
        return metrics

    def count_non_finite(self) -> list[tuple[str, str, int]]:
        """Return the model, the quantity and the number of values that are not finite."""
        return [
            (model, quantity, buckets.num_non_finite)
            for model, steps in self._models.items()
            for quantity, buckets in zip(_QUANTITIES, steps.histograms, strict=True)
        ]


class ModelSteps:
    """Histograms of one model."""

    __slots__ = ("_entropy", "_margin", "_surprise", "histograms")

    def __init__(self) -> None:
        self._entropy = _Buckets(catalogue.STEP_ENTROPY)
        self._surprise = _Buckets(catalogue.STEP_SURPRISE)
        self._margin = _Buckets(catalogue.DRAW_MARGIN)
        # In the catalogue's order.
        self.histograms = (self._entropy, self._surprise, self._margin)

    def take(self, step: Step, origin: Origin) -> None:
        """Record the values that a step has."""
        if step.HasField("entropy"):
            self._entropy.take(step.entropy, step, origin)
        if step.HasField("logprob"):
            self._surprise.take(-step.logprob, step, origin)
        if step.HasField("draw") and step.draw.HasField("margin"):
            self._margin.take(step.draw.margin, step, origin)


class _ExemplarSource(NamedTuple):
    """Value of a sampled generation, and its step."""

    value: float
    origin: Origin
    sequence_index: int
    elapsed_ns: int

    def make_exemplar(self) -> Exemplar:
        """Return an exemplar with the `decode` span's id, because not every step has a span."""
        return Exemplar(
            {},
            self.value,
            self.origin.start_time_ns + self.elapsed_ns,
            int.from_bytes(self.origin.ids.get_decode_id(self.sequence_index)),
            int.from_bytes(self.origin.trace_id),
        )


class _Buckets:
    """Bucket counts of one histogram."""

    __slots__ = ("_boundaries", "_counts", "_latest", "_sum", "num_non_finite")

    def __init__(self, definition: Definition) -> None:
        self._boundaries: Sequence[float] = definition.boundaries
        self._counts = [0] * (len(definition.boundaries) + 1)
        self._latest: list[_ExemplarSource | None] = [None] * len(self._counts)
        self._sum = 0.0
        self.num_non_finite = 0

    @property
    def sum_of_counts(self) -> int:
        return sum(self._counts)

    def take(self, value: float, step: Step, origin: Origin) -> None:
        if not isfinite(value):  # left out as in the SDK, because they would spoil the sum
            self.num_non_finite += 1
            return
        index = bisect_left(self._boundaries, value)
        self._counts[index] += 1
        self._sum += value
        if origin.sampled:
            self._latest[index] = _ExemplarSource(
                value, origin, step.sequence_index, step.timing.elapsed_ns
            )

    def make_point(self, model: str, start_time_ns: int, time_ns: int) -> HistogramDataPoint:
        return HistogramDataPoint(
            attributes={GEN_AI_REQUEST_MODEL: model},
            start_time_unix_nano=start_time_ns,
            time_unix_nano=time_ns,
            count=sum(self._counts),
            sum=self._sum,
            bucket_counts=tuple(self._counts),
            explicit_bounds=self._boundaries,
            # None: OTLP permits histograms without minimum and maximum.
            min=cast("float", None),
            max=cast("float", None),
            exemplars=[source.make_exemplar() for source in self._latest if source is not None],
        )
