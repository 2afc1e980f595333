"""What is new since the last time: of the histograms that are kept beside the SDK."""

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
    """Remembers, for one output, what it was given last, as the SDK's readers do for theirs.

    Args:
        temporality: CUMULATIVE leaves the counts as they are; DELTA takes off what was given
            before, and leaves out what has not grown. Exemplars are given once in either case.
    """

    def __init__(self, temporality: AggregationTemporality) -> None:
        self._temporality = temporality
        self._last: dict[tuple[str, str], HistogramDataPoint] = {}

    def apply(self, data: MetricsData) -> MetricsData:
        """Return the data with these histograms as this output is to see them."""
        return replace(
            data,
            resource_metrics=[
                replace(
                    resource,
                    scope_metrics=[
                        replace(scope, metrics=[*filter(None, map(self._metric, scope.metrics))])
                        for scope in resource.scope_metrics
                    ],
                )
                for resource in data.resource_metrics
            ],
        )

    def _metric(self, metric: Metric) -> Metric | None:
        if metric.name not in _OURS or not isinstance(metric.data, Histogram):
            return metric
        points = [self._point(metric.name, point) for point in metric.data.data_points]
        grown = [point for point in points if point.count]
        return replace(metric, data=Histogram(grown, self._temporality)) if grown else None

    def _point(self, name: str, point: HistogramDataPoint) -> HistogramDataPoint:
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
