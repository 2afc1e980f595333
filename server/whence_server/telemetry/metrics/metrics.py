"""Composition of the server's metrics: one recorder, the Prometheus page and the OTLP push."""

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
from whence_server.telemetry.metrics.instruments import Instruments, make_meter_provider
from whence_server.telemetry.metrics.observables import LiveSources, create_observables
from whence_server.telemetry.metrics.otlp import make_otlp_exporter
from whence_server.telemetry.metrics.page import PrometheusPage
from whence_server.telemetry.metrics.push import MetricsPush, choose_temporality
from whence_server.telemetry.metrics.reader import MetricsReader
from whence_server.telemetry.metrics.step_histograms import StepHistograms

CONSUMER_NAME = "metrics"


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """Pace of the metrics' follower.

    Attributes:
        batch_entries: most entries of one batch.
        linger_s: time to wait after a commit, so that further entries join the batch.
        retry_s: seconds to wait after the journal could not be read.
    """

    batch_entries: int = 1_024
    linger_s: float = 0.25
    retry_s: float = 5.0


class Metrics:
    """Metrics of a server, from journal entries and from observations of the running server.

    The journal is followed from its present end, and counters begin at 0 with the process: an
    earlier process measured earlier entries. Not thread-safe: use it in the event loop's thread.

    Args:
        journal: the journal to follow.
        resource: resource of the server.
        version: version of whence, for the instrumentation scope.
        live: the running server.
        exports: the other followers of the journal, by name.
        push: options of the push over OTLP; None pushes nothing.
        exporter: exporter of the push; None makes one for the push's destination.
        options: pace of the follower.

    Attributes:
        consumers: followers of the journal by name, the metrics' own first.
        page: the page for Prometheus.
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
            temporality = choose_temporality(push.preference)
            reader = MetricsReader(steps, resource, version, temporality)
            readers.append(reader)
            self._push = MetricsPush(
                reader, exporter or make_otlp_exporter(push.destination, temporality), push
            )
        self._provider = make_meter_provider(resource, readers)
        self._instruments = Instruments(self._provider, version)
        generations = GenerationMetrics(self._instruments, steps)
        self._follower = JournalFollower(
            journal,
            MetricsHandler(journal, generations, self._instruments, options.retry_s),
            cursor=None,
            options=FollowOptions(options.batch_entries, options.linger_s),
            name="metrics-follower",
        )
        self.consumers: Consumers = {CONSUMER_NAME: Consumer(self._follower.measure_lag), **exports}
        create_observables(self._instruments.meter, LiveSources(live, self.consumers, steps))
        self.page = PrometheusPage(page_reader, resource, live)

    def start(self) -> None:
        """Start following and pushing in the running event loop."""
        self._follower.start()
        if self._push is not None:
            self._push.start()

    def record_commit(self, duration_s: float) -> None:
        """Record the duration of one of the journal's transactions."""
        self._instruments.record(catalogue.JOURNAL_COMMIT, duration_s, {})

    async def flush(self, timeout_s: float) -> bool:
        """Wait until every entry committed by now is measured; return False if time ran out."""
        return await self._follower.flush(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Measure the committed entries, push a last time, and release everything.

        Args:
            timeout_s: most seconds for the measuring, and for the push.
        """
        await self._follower.flush(timeout_s)
        await self._follower.close()
        if self._push is not None:
            await self._push.close(timeout_s)
        self._provider.shutdown()
