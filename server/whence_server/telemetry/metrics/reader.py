"""Reader that collects on demand the SDK's metrics and the histograms of steps."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Metric,
    MetricReader,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from whence_server.telemetry.metrics.step_histograms import StepHistograms
from whence_server.telemetry.otlp.scope import SCOPE


class MetricsReader(MetricReader):
    """Reader of one output.

    Not thread-safe: observable instruments are observed in the thread that reads.

    Args:
        steps: histograms of steps, which the SDK does not hold.
        resource: resource of the server.
        version: version of whence, for the instrumentation scope.
        temporality: temporality of each class of instrument; cumulative by default. The
            histograms of steps are always cumulative.
    """

    def __init__(
        self,
        steps: StepHistograms,
        resource: Resource,
        version: str,
        temporality: Mapping[type, AggregationTemporality] = {},
    ) -> None:
        super().__init__(preferred_temporality=dict(temporality))
        self._steps = steps
        self._resource = resource
        self._scope = InstrumentationScope(SCOPE, version)
        self._received: MetricsData | None = None

    def read(self) -> MetricsData:
        """Return the current value of every metric."""
        self._received = None
        self.collect()
        received, self._received = self._received, None
        return self._add_steps(received, self._steps.make_metrics(time.time_ns()))

    def _add_steps(self, received: MetricsData | None, steps: list[Metric]) -> MetricsData:
        """Add the histograms to whence's scope: exporters keep only the last of equal scopes."""
        scopes = list(received.resource_metrics[0].scope_metrics) if received else []
        own = [scope for scope in scopes if scope.scope.name == SCOPE]
        others = [scope for scope in scopes if scope.scope.name != SCOPE]
        metrics = [metric for scope in own for metric in scope.metrics] + steps
        merged = replace(own[0], metrics=metrics) if own else ScopeMetrics(self._scope, metrics, "")
        return MetricsData([ResourceMetrics(self._resource, [merged, *others], "")])

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        del timeout_millis, kwargs
        self._received = metrics_data

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Do nothing, because there is nothing to release."""
