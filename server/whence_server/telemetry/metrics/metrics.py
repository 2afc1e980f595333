"""The server's metrics put together: one recording, and what it is shown through."""

import time
from dataclasses import dataclass

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import Resource

from whence_server.domain.telemetry import PushOptions
from whence_server.telemetry.follower import FollowOptions, JournalFollower
from whence_server.telemetry.journal import FollowedJournal
from whence_server.telemetry.live import Consumer, Consumers, LiveServer
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.generations import GenerationMetrics
from whence_server.telemetry.metrics.handler import MetricsHandler
from whence_server.telemetry.metrics.instruments import Instruments, meter_provider
from whence_server.telemetry.metrics.observables import Observed, create_observables
from whence_server.telemetry.metrics.otlp import otlp_exporter
from whence_server.telemetry.metrics.page import PrometheusPage
from whence_server.telemetry.metrics.push import MetricsPush, temporality_of
from whence_server.telemetry.metrics.reader import MetricsReader
from whence_server.telemetry.metrics.step_histograms import StepHistograms

CONSUMER_NAME = "metrics"


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """Pace of the measuring.

    Attributes:
        batch_entries: read from the journal at a time.
        linger_s: time that new entries are left to gather.
        retry_s: time to wait after the journal could not be read.
    """

    batch_entries: int = 1_024
    linger_s: float = 0.25
    retry_s: float = 5.0


class Metrics:
    """Follows the journal from its present end, and looks at the running server when asked.

    Counters begin at 0 with the process: what an earlier process wrote was measured by that one.
    Used from the event loop's thread alone.

    Args:
        journal: what to follow.
        resource: who reports.
        version: whence's own, for the instrumentation scope.
        live: the running server.
        exports: the other followers of the journal, by name.
        push: how to push over OTLP; None does not.
        exporter: where a push goes, instead of the push's destination.
        options: the pace.

    Attributes:
        consumers: the followers of the journal, the metrics' own first.
        page: for Prometheus.
    """

    def __init__(
        self,
        journal: FollowedJournal,
        resource: Resource,
        version: str,
        live: LiveServer,
        exports: Consumers,
        *,
        push: PushOptions | None = None,
        exporter: MetricExporter | None = None,
        options: MetricsOptions = MetricsOptions(),
    ) -> None:
        steps = StepHistograms(time.time_ns())
        page_reader = MetricsReader(steps, resource, version)
        readers = [page_reader]
        self._push: MetricsPush | None = None
        if push is not None:
            temporality = temporality_of(push.preference)
            reader = MetricsReader(steps, resource, version, temporality)
            readers.append(reader)
            self._push = MetricsPush(
                reader, exporter or otlp_exporter(push.destination, temporality), push
            )
        self._provider = meter_provider(resource, readers)
        self._instruments = Instruments(self._provider, version)
        generations = GenerationMetrics(self._instruments, steps)
        self._follower = JournalFollower(
            journal,
            MetricsHandler(journal, generations, self._instruments, options.retry_s),
            cursor=None,
            options=FollowOptions(options.batch_entries, options.linger_s),
            name="metrics-follower",
        )
        self.consumers: Consumers = {CONSUMER_NAME: Consumer(self._follower.lag), **exports}
        create_observables(self._instruments.meter, Observed(live, self.consumers, steps))
        self.page = PrometheusPage(page_reader, resource, live)

    def start(self) -> None:
        """Start following and pushing in the running event loop."""
        self._follower.start()
        if self._push is not None:
            self._push.start()

    def committed(self, duration_s: float) -> None:
        """Record how long one of the journal's transactions took."""
        self._instruments.record(catalogue.JOURNAL_COMMIT, duration_s, {})

    async def flush(self, timeout_s: float) -> bool:
        """Wait until all that is committed by now is measured; return False if time ran out."""
        return await self._follower.flush(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Measure what is committed, push a last time, and release everything.

        Args:
            timeout_s: how long each of the two may take.
        """
        await self._follower.flush(timeout_s)
        await self._follower.close()
        if self._push is not None:
            await self._push.close(timeout_s)
        self._provider.shutdown()
