"""Gauges that show NaN and infinity: OpenTelemetry's SDK drops what is not finite.

A gauge that keeps its last good value while a loss is NaN keeps every alert quiet.
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
    """The newest value of each gauge.

    Args:
        definitions: of the gauges.

    Attributes:
        attributes: put on every value.
    """

    def __init__(self, definitions: Iterable[Definition]) -> None:
        self._definitions = tuple(definitions)
        self._newest: dict[Definition, float] = {}
        self.attributes: Mapping[str, str] = {}

    def set(self, gauge: Definition, value: float) -> None:
        """Set a gauge."""
        self._newest[gauge] = value

    def observe(self, meter: Meter) -> None:
        """Make the instruments, which show the finite values."""
        for it in self._definitions:

            def look(_: CallbackOptions, it: Definition = it) -> Iterator[Observation]:
                value = self._newest.get(it, math.nan)
                if math.isfinite(value):
                    yield Observation(value, dict(self.attributes))

            meter.create_observable_gauge(it.name, [look], it.unit, it.description)

    def not_finite(self) -> list[Metric]:
        """Return the gauges that the SDK cannot show, as of now."""
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


class NotFiniteToo(MetricExporter):
    """Adds the values that are not finite to what the SDK has collected.

    Args:
        exporter: gets all of it.
        gauges: see there.
        temporality: the exporter's.
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
        """Send all of it."""
        return self._exporter.export(self._completed(metrics_data), timeout_millis, **kwargs)

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Send what the exporter holds."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Let go of the exporter's connections."""
        self._exporter.shutdown(timeout_millis, **kwargs)

    def _completed(self, data: MetricsData) -> MetricsData:
        added = self._gauges.not_finite()
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
