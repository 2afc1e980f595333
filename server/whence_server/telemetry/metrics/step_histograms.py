"""Histograms of what every step says, kept beside the SDK, whose instruments are too slow here.

One record of the SDK's takes 7 us, and 14 us with two readers and an exemplar: three of them at
5,000 steps a second would be a tenth to a fifth of a core. Here all three take 4 us. The SDK's
readers cannot be given a further producer of metrics, so `MetricsReader` adds these to what it
has collected.
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
"""In the order of `catalogue.STEPS`."""


class StepHistograms:
    """One histogram a model for each of `catalogue.STEPS`.

    Not for several threads: recorded and collected in the event loop's.

    Args:
        start_time_ns: Unix time from which it counts.
    """

    def __init__(self, start_time_ns: int) -> None:
        self._start_time_ns = start_time_ns
        self._models: dict[str, ModelSteps] = {}

    def for_model(self, model: str) -> "ModelSteps":
        """Return the place where a model's steps go."""
        steps = self._models.get(model)
        if steps is None:
            steps = self._models[model] = ModelSteps()
        return steps

    def metrics(self, time_ns: int) -> list[Metric]:
        """Return all of it, cumulative, as of a Unix time; histograms without values are left out.

        Each bucket has the latest exemplar that fell into it.
        """
        metrics = []
        for index, definition in enumerate(catalogue.STEPS):
            points = [
                steps.histograms[index].point(model, self._start_time_ns, time_ns)
                for model, steps in self._models.items()
                if steps.histograms[index].sum_of_counts
            ]
            if points:
                data = Histogram(points, AggregationTemporality.CUMULATIVE)
                metrics.append(
                    Metric(definition.name, definition.description, definition.unit, data)
                )
        return metrics

    def non_finite(self) -> list[tuple[str, str, int]]:
        """Return counts of values that are in no bucket: model, quantity, number."""
        return [
            (model, quantity, buckets.num_non_finite)
            for model, steps in self._models.items()
            for quantity, buckets in zip(_QUANTITIES, steps.histograms, strict=True)
        ]


class ModelSteps:
    """One model's histograms."""

    __slots__ = ("_entropy", "_margin", "_surprise", "histograms")

    def __init__(self) -> None:
        self._entropy = _Buckets(catalogue.STEP_ENTROPY)
        self._surprise = _Buckets(catalogue.STEP_SURPRISE)
        self._margin = _Buckets(catalogue.DRAW_MARGIN)
        # In the catalogue's order.
        self.histograms = (self._entropy, self._surprise, self._margin)

    def take(self, step: Step, origin: Origin) -> None:
        """Put a step's values, those that it has, into their buckets."""
        if step.HasField("entropy"):
            self._entropy.take(step.entropy, step, origin)
        if step.HasField("logprob"):
            self._surprise.take(-step.logprob, step, origin)
        if step.HasField("draw") and step.draw.HasField("margin"):
            self._margin.take(step.draw.margin, step, origin)


class _ExemplarSource(NamedTuple):
    """A value of a sampled generation, and the step that it came from."""

    value: float
    origin: Origin
    sequence_index: int
    elapsed_ns: int

    def exemplar(self) -> Exemplar:
        """Points at the sequence's `decode` span: a step beyond the cap has none of its own."""
        return Exemplar(
            {},
            self.value,
            self.origin.start_time_ns + self.elapsed_ns,
            int.from_bytes(self.origin.ids.decode(self.sequence_index)),
            int.from_bytes(self.origin.trace_id),
        )


class _Buckets:
    """Counts of one histogram."""

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
        if not isfinite(value):  # the SDK leaves those out too: no sum would survive them
            self.num_non_finite += 1
            return
        index = bisect_left(self._boundaries, value)
        self._counts[index] += 1
        self._sum += value
        if origin.sampled:
            self._latest[index] = _ExemplarSource(
                value, origin, step.sequence_index, step.timing.elapsed_ns
            )

    def point(self, model: str, start_time_ns: int, time_ns: int) -> HistogramDataPoint:
        return HistogramDataPoint(
            attributes={GEN_AI_REQUEST_MODEL: model},
            start_time_unix_nano=start_time_ns,
            time_unix_nano=time_ns,
            count=sum(self._counts),
            sum=self._sum,
            bucket_counts=tuple(self._counts),
            explicit_bounds=self._boundaries,
            # OTLP leaves both out where nobody has kept them.
            min=cast("float", None),
            max=cast("float", None),
            exemplars=[source.exemplar() for source in self._latest if source is not None],
        )
