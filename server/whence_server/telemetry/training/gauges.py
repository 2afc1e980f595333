"""Gauges that export NaN and infinity, which OpenTelemetry's SDK drops.

Alerts need them: a gauge that keeps its last finite value hides that a loss became NaN.
"""

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
)

from whence_server.telemetry.metrics.catalogue import Definition


class Gauges:
    """Newest value of each gauge.

    Args:
        definitions: definitions of the gauges.

    Attributes:
        attributes: attributes of every value.
    """

    def __init__(self, definitions: Iterable[Definition]) -> None:
        self._definitions = tuple(definitions)
        self._newest: dict[Definition, float] = {}
        self.attributes: Mapping[str, str] = {}

    def set(self, gauge: Definition, value: float) -> None:
        """Set a gauge."""
        self._newest[gauge] = value

    def observe(self, meter: Meter) -> None:
        """Create the SDK's instruments, which export the finite values."""
        for it in self._definitions:

            def look(_: CallbackOptions, it: Definition = it) -> Iterator[Observation]:
                value = self._newest.get(it, math.nan)
                if math.isfinite(value):
                    yield Observation(value, dict(self.attributes))

            meter.create_observable_gauge(it.name, [look], it.unit, it.description)

    def list_non_finite(self) -> list[Metric]:
        """Return the gauges whose current value is not finite, which the SDK does not export."""
        now = time.time_ns()
        return [
            Metric(
                it.name,
                it.description,
                it.unit,
                Gauge([NumberDataPoint(dict(self.attributes), now, now, value)]),
            )
            for it, value in list(self._newest.items())
            if not math.isfinite(value)
        ]


class NonFiniteExporter(MetricExporter):
    """Exporter that adds non-finite gauges to the metrics that the SDK has collected.

    Args:
        exporter: exporter that receives all metrics.
        gauges: the gauges.
        temporality: the exporter's temporality of each class of instrument.
    """

    def __init__(
        self,
        exporter: MetricExporter,
        gauges: Gauges,
        temporality: Mapping[type, AggregationTemporality],
    ) -> None:
        super().__init__(preferred_temporality=dict(temporality))
        self._exporter = exporter
        self._gauges = gauges

    def export(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> MetricExportResult:
        """Export the metrics and the non-finite gauges."""
        return self._exporter.export(self._add_non_finite(metrics_data), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _add_non_finite(self, data: MetricsData) -> MetricsData:
        added = self._gauges.list_non_finite()
        if not added or not data.resource_metrics:
            return data
        first, *others = data.resource_metrics
        scope, *scopes = first.scope_metrics
        names = {metric.name for metric in added}
        kept = [metric for metric in scope.metrics if metric.name not in names]
        scope = replace(scope, metrics=[*kept, *added])
        return replace(
            data,
            resource_metrics=[replace(first, scope_metrics=[scope, *scopes]), *others],
        )
