"""The catalogue as instruments of the OpenTelemetry SDK."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from opentelemetry.context import Context
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider, TraceBasedExemplarFilter
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.metrics.view import (
    DefaultAggregation,
    ExplicitBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource

from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Definition, Kind
from whence_server.telemetry.otlp.scope import SCOPE

Attributes: TypeAlias = Mapping[str, str]


def meter_provider(resource: Resource, readers: Sequence[MetricReader]) -> MeterProvider:
    """Return a provider whose views hold every instrument to its catalogue entry.

    Exemplars are kept of sampled traces only.
    """
    return MeterProvider(
        metric_readers=readers,
        resource=resource,
        views=[_view(definition) for definition in (*catalogue.RECORDED, *catalogue.OBSERVED)],
        exemplar_filter=TraceBasedExemplarFilter(),
        shutdown_on_exit=False,
    )


class Instruments:
    """What is recorded as it happens, by catalogue entry.

    Args:
        provider: as `meter_provider` gives it.
        version: whence's own, for the instrumentation scope.
    """

    def __init__(self, provider: MeterProvider, version: str) -> None:
        self.meter: Meter = provider.get_meter(SCOPE, version)
        self._counters = {
            it.name: self.meter.create_counter(it.name, it.unit, it.description)
            for it in catalogue.RECORDED
            if it.kind is Kind.COUNTER
        }
        self._histograms = {
            it.name: self.meter.create_histogram(it.name, it.unit, it.description)
            for it in catalogue.RECORDED
            if it.kind is Kind.HISTOGRAM
        }

    def add(self, counter: Definition, number: int, attributes: Attributes) -> None:
        """Count."""
        self._counters[counter.name].add(number, attributes)

    def record(
        self,
        histogram: Definition,
        value: float,
        attributes: Attributes,
        context: Context = Context(),  # noqa: B008 - immutable, and holds no span
    ) -> None:
        """Put a value into a histogram.

        Args:
            histogram: which one.
            value: in the histogram's unit.
            attributes: those of the catalogue.
            context: holds the span that the value belongs to, where that is sampled.
        """
        self._histograms[histogram.name].record(value, attributes, context)


def _view(definition: Definition) -> View:
    return View(
        instrument_name=definition.name,
        attribute_keys=set(definition.attributes),
        aggregation=(
            ExplicitBucketHistogramAggregation(definition.boundaries)
            if definition.kind is Kind.HISTOGRAM
            else DefaultAggregation()
        ),
    )
