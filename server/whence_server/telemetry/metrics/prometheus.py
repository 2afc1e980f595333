"""Translation of OpenTelemetry's metrics into Prometheus' metric families.

Source: the OpenTelemetry specification, "Prometheus and OpenMetrics Compatibility". Names, units
and labels equal those of opentelemetry-exporter-prometheus without scope labels. That exporter
is not used because it drops exemplars, which lead from a slow bucket to a trace.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from opentelemetry.sdk.metrics import Exemplar as SdkExemplar
from opentelemetry.sdk.metrics.export import (
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.core import Metric as Family
from prometheus_client.samples import Exemplar

_UNITS = {"s": "seconds", "By": "bytes"}
"""Units of the catalogue, with the names of the specification's table."""
_ANNOTATION = re.compile(r"\{[^}]*\}")
_NOT_IN_A_NAME = re.compile(r"[^a-zA-Z0-9:]+")
_NOT_IN_A_LABEL = re.compile(r"[^a-zA-Z0-9]+")


def get_family_name(name: str, unit: str) -> str:
    """Return a family's name, without the samples' suffixes (`_total`, `_bucket`, ...).

    Args:
        name: OpenTelemetry's name of the metric.
        unit: UCUM unit of the metric.
    """
    family, suffix = _NOT_IN_A_NAME.sub("_", name), get_unit_name(unit)
    return family if not suffix or family.endswith("_" + suffix) else f"{family}_{suffix}"


def get_unit_name(unit: str) -> str:
    """Return Prometheus' name of a unit; "" for an empty unit and for an annotation alone.

    Raises:
        ValueError: the unit is not in `_UNITS`.
    """
    bare = _ANNOTATION.sub("", unit)
    if not bare:
        return ""
    if bare not in _UNITS:
        raise ValueError(f"no Prometheus unit is known for {unit!r}; known are {', '.join(_UNITS)}")
    return _UNITS[bare]


def get_label_name(attribute: str) -> str:
    """Return the label name of an attribute."""
    return _NOT_IN_A_LABEL.sub("_", attribute)


def make_target_info(resource: Resource) -> InfoMetricFamily:
    """Return the resource as the `target_info` family."""
    attributes = {get_label_name(key): str(value) for key, value in resource.attributes.items()}
    return InfoMetricFamily("target", "Target metadata", value=attributes)


class Translation:
    """Translator of a reader's metrics into families.

    It keeps the latest exemplar of every bucket: a reader returns each exemplar once, and several
    Prometheus servers that scrape in turns shall see the same.
    """

    def __init__(self) -> None:
        self._exemplars: dict[tuple[str, tuple[str, ...]], dict[int, Exemplar]] = {}

    def translate(self, data: MetricsData) -> Iterator[Family]:
        """Yield one family for each metric that has a value.

        Raises:
            ValueError: a metric has a unit that `get_unit_name` does not know.
        """
        for resource_metrics in data.resource_metrics:
            for scope_metrics in resource_metrics.scope_metrics:
                for metric in scope_metrics.metrics:
                    yield self._translate_metric(metric)

    def _translate_metric(self, metric: Metric) -> Family:
        name, text = _NOT_IN_A_NAME.sub("_", metric.name), metric.description or ""
        unit, data = get_unit_name(metric.unit or ""), metric.data
        keys = sorted({key for point in data.data_points for key in point.attributes or {}})
        labels = [get_label_name(key) for key in keys]
        if isinstance(data, Histogram):
            histogram = HistogramMetricFamily(name, text, labels=labels, unit=unit)
            for point in data.data_points:
                row = _read_labels(point, keys)
                histogram.add_metric(row, self._make_buckets(histogram.name, row, point), point.sum)
            return histogram
        if not isinstance(data, Sum | Gauge):
            raise TypeError(
                f"{metric.name} is a {type(data).__name__}, not a Sum, Gauge or Histogram"
            )
        monotonic = isinstance(data, Sum) and data.is_monotonic
        make = CounterMetricFamily if monotonic else GaugeMetricFamily
        family = make(name, text, labels=labels, unit=unit)
        for number in data.data_points:
            family.add_metric(_read_labels(number, keys), number.value)
        return family

    def _make_buckets(
        self, name: str, row: list[str], point: HistogramDataPoint
    ) -> list[tuple[str, float] | tuple[str, float, Exemplar]]:
        kept = self._exemplars.setdefault((name, tuple(row)), {})
        kept.update(_assign_to_buckets(point.exemplars, point.explicit_bounds))
        bounds = [*map(str, point.explicit_bounds), "+Inf"]
        counts = accumulate(point.bucket_counts)
        return [
            (bound, count, kept[index]) if index in kept else (bound, count)
            for index, (bound, count) in enumerate(zip(bounds, counts, strict=True))
        ]


def _read_labels(point: NumberDataPoint | HistogramDataPoint, keys: Iterable[str]) -> list[str]:
    """Return label values; to Prometheus an empty one is the same as an absent label."""
    attributes = point.attributes or {}
    return [str(attributes.get(key, "")) for key in keys]


def _assign_to_buckets(
    exemplars: Sequence[SdkExemplar], bounds: Sequence[float]
) -> Iterator[tuple[int, Exemplar]]:
    for exemplar in exemplars:
        if exemplar.trace_id is None or exemplar.span_id is None:
            continue
        labels = {
            "trace_id": format_trace_id(exemplar.trace_id),
            "span_id": format_span_id(exemplar.span_id),
        }
        time_s = exemplar.time_unix_nano / 1e9
        yield bisect_left(bounds, exemplar.value), Exemplar(labels, exemplar.value, time_s)
