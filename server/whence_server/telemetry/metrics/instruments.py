"""Instruments of the OpenTelemetry SDK, made from the catalogue."""

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

Attributes: TypeAlias = Mapping[str, str | int]


def make_meter_provider(resource: Resource, readers: Sequence[MetricReader]) -> MeterProvider:
    """Return a provider whose views limit every instrument to its catalogue entry.

    Only values of sampled traces become exemplars.
    """
    return MeterProvider(
        metric_readers=readers,
        resource=resource,
        views=[_make_view(definition) for definition in (*catalogue.MEASURED, *catalogue.POLLED)],
        exemplar_filter=TraceBasedExemplarFilter(),
        shutdown_on_exit=False,
    )


class Instruments:
    """Counters and histograms that are recorded as events happen, by catalogue entry.

    Args:
        provider: the provider of `make_meter_provider`.
        version: version of whence, for the instrumentation scope.
    """

    def __init__(self, provider: MeterProvider, version: str) -> None:
        self.meter: Meter = provider.get_meter(SCOPE, version)
        self._counters = {
            it.name: self.meter.create_counter(it.name, it.unit, it.description)
            for it in catalogue.MEASURED
            if it.kind is Kind.COUNTER
        }
        self._histograms = {
            it.name: self.meter.create_histogram(it.name, it.unit, it.description)
            for it in catalogue.MEASURED
            if it.kind is Kind.HISTOGRAM
        }

    def add(self, counter: Definition, number: int, attributes: Attributes) -> None:
        """Add a number to a counter."""
        self._counters[counter.name].add(number, attributes)

    def record(
        self,
        histogram: Definition,
        value: float,
        attributes: Attributes,
        context: Context = Context(),  # noqa: B008 - immutable, and holds no span
    ) -> None:
        """Record a value in a histogram.

        Args:
            histogram: the histogram's catalogue entry.
            value: the value, in the histogram's unit.
            attributes: attributes of the catalogue entry.
            context: holds the value's span if that is sampled, for exemplars.
        """
        self._histograms[histogram.name].record(value, attributes, context)


def _make_view(definition: Definition) -> View:
    return View(
        instrument_name=definition.name,
        attribute_keys=set(definition.attributes),
        aggregation=(
            ExplicitBucketHistogramAggregation(definition.boundaries)
            if definition.kind is Kind.HISTOGRAM
            else DefaultAggregation()
        ),
    )
