"""Collects on demand: what the SDK holds, and the histograms that are kept beside it."""

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
    """One output's reader.

    Not for several threads: whatever is observed is looked at in the thread that reads.

    Args:
        steps: the histograms beside the SDK.
        resource: whose metrics these are.
        version: whence's own, for the instrumentation scope.
        temporality: for each class of instrument; cumulative by default. The histograms beside
            the SDK come cumulative in any case.
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
        """Return everything as it is now."""
        self._received = None
        self.collect()
        received, self._received = self._received, None
        return self._with_steps(received, self._steps.metrics(time.time_ns()))

    def _with_steps(self, received: MetricsData | None, steps: list[Metric]) -> MetricsData:
        """Put them into the one resource and scope: exporters keep only the last of equal ones."""
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
        """Have nothing to let go of."""
