"""Changes of the histograms of steps since the last collection, for delta temporality."""

from dataclasses import replace

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
)

from whence_server.telemetry.metrics import catalogue

_OURS = frozenset(definition.name for definition in catalogue.STEPS)


class Window:
    """State of one output: the histograms of steps that it received last.

    Args:
        temporality: CUMULATIVE keeps the counts; DELTA subtracts the last counts, and leaves out
            histograms without new values. Either way each exemplar is passed on once.
    """

    def __init__(self, temporality: AggregationTemporality) -> None:
        self._temporality = temporality
        self._last: dict[tuple[str, str], HistogramDataPoint] = {}

    def apply(self, data: MetricsData) -> MetricsData:
        """Return the data, with the histograms of steps in the output's temporality."""
        return replace(
            data,
            resource_metrics=[
                replace(
                    resource,
                    scope_metrics=[
                        replace(
                            scope,
                            metrics=[*filter(None, map(self._apply_to_metric, scope.metrics))],
                        )
                        for scope in resource.scope_metrics
                    ],
                )
                for resource in data.resource_metrics
            ],
        )

    def _apply_to_metric(self, metric: Metric) -> Metric | None:
        if metric.name not in _OURS or not isinstance(metric.data, Histogram):
            return metric
        points = [self._apply_to_point(metric.name, point) for point in metric.data.data_points]
        grown = [point for point in points if point.count]
        return replace(metric, data=Histogram(grown, self._temporality)) if grown else None

    def _apply_to_point(self, name: str, point: HistogramDataPoint) -> HistogramDataPoint:
        key = (name, str(point.attributes))
        last, self._last[key] = self._last.get(key), point
        if last is None:
            return point
        seen = {(it.time_unix_nano, it.value, it.span_id) for it in last.exemplars}
        new = replace(
            point,
            exemplars=[
                it
                for it in point.exemplars
                if (it.time_unix_nano, it.value, it.span_id) not in seen
            ],
        )
        if self._temporality is AggregationTemporality.CUMULATIVE:
            return new
        return replace(
            new,
            start_time_unix_nano=last.time_unix_nano,
            count=point.count - last.count,
            sum=point.sum - last.sum,
            bucket_counts=tuple(
                now - before
                for now, before in zip(point.bucket_counts, last.bucket_counts, strict=True)
            ),
        )
