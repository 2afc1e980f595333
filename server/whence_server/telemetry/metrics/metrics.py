"""The server's metrics put together: one recording, and what it is shown through."""

import time

from opentelemetry.sdk.metrics.export import MetricExporter
from opentelemetry.sdk.resources import Resource

from whence_server.domain.telemetry import PushOptions
from whence_server.telemetry.journal import FollowedJournal
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.cursor import CONSUMER_NAME, CursorOptions, MetricsCursor
from whence_server.telemetry.metrics.generations import GenerationMetrics
from whence_server.telemetry.metrics.instruments import Instruments, meter_provider
from whence_server.telemetry.metrics.live import observe
from whence_server.telemetry.metrics.otlp import otlp_exporter
from whence_server.telemetry.metrics.page import PrometheusPage
from whence_server.telemetry.metrics.push import MetricsPush, temporality_of
from whence_server.telemetry.metrics.reader import MetricsReader
from whence_server.telemetry.metrics.seams import LiveParts
from whence_server.telemetry.metrics.step_histograms import StepHistograms


class Metrics:
    """Follows the journal from its present end, and looks at the live parts when asked.

    Used from the event loop's thread alone.

    Args:
        journal: what to follow.
        resource: who reports.
        version: whence's own, for the instrumentation scope.
        push: how to push over OTLP; None does not.
        exporter: where a push goes, instead of the push's destination.
        options: of the cursor.

    Attributes:
        parts: what can be looked at; to be filled in as it comes to life.
        page: for Prometheus.
    """

    def __init__(
        self,
        journal: FollowedJournal,
        resource: Resource,
        version: str,
        *,
        push: PushOptions | None = None,
        exporter: MetricExporter | None = None,
        options: CursorOptions = CursorOptions(),  # noqa: B008 - frozen
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
        self.parts = LiveParts(non_finite=steps.non_finite)
        self.page = PrometheusPage(page_reader, resource, self.parts)
        observe(self._instruments.meter, self.parts)
        generations = GenerationMetrics(self._instruments, steps)
        self._cursor = MetricsCursor(journal, generations, self._instruments, options=options)
        self.parts.lags[CONSUMER_NAME] = self._cursor.behind

    def start(self) -> None:
        """Starts following and pushing in the running event loop."""
        self._cursor.start()
        if self._push is not None:
            self._push.start()

    def committed(self, duration_s: float) -> None:
        """Records how long one of the journal's transactions took."""
        self._instruments.record(catalogue.JOURNAL_COMMIT, duration_s, {})

    async def flush(self, timeout_s: float) -> bool:
        """Waits until all that is committed by now is measured; False if time ran out."""
        return await self._cursor.flush(timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Measures what is committed, pushes a last time, and lets go of everything.

        Args:
            timeout_s: how long each of the two may take.
        """
        await self._cursor.flush(timeout_s)
        await self._cursor.close()
        if self._push is not None:
            await self._push.close(timeout_s)
        self._provider.shutdown()
