"""What is shown of the server to the outside: spans, events, metrics; built, started, closed."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from opentelemetry.sdk.trace.sampling import Sampler

from whence_server.config import ServeConfig, otlp_settings, unused_variables
from whence_server.config.telemetry import (
    CAPTURE_VARIABLE,
    read_content_capture,
    read_push_options,
    read_sampling,
)
from whence_server.domain.addresses import parse_host_port
from whence_server.domain.engine import Engine
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.telemetry import ContentCapture
from whence_server.generation.service import Generations
from whence_server.journal.journal import Journal
from whence_server.telemetry.export.delivery import describe_span
from whence_server.telemetry.export.exporter import ExportOptions, SpanExporter
from whence_server.telemetry.export.otlp_grpc import EXPORT_LOGS_METHOD
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.resource import service_resource
from whence_server.telemetry.export.sinks import sink_for
from whence_server.telemetry.health import Health
from whence_server.telemetry.metrics.http import MetricsServer
from whence_server.telemetry.metrics.metrics import Metrics
from whence_server.telemetry.sampling import make_sampler
from whence_server.telemetry.spans.events import EventEncoder, describe_event

_log = logging.getLogger(__name__)

SPANS, EVENTS = "otlp-spans", "otlp-events"
"""The journal's cursors."""
_FLUSH_S = 5.0


class Observability:
    """Everything that follows the journal on its way out.

    Args:
        settings: see there.
        journal: what is followed; it outlives this.

    Attributes:
        sampler: decides which requests make spans.

    Raises:
        ConfigurationError: a setting means nothing here.
    """

    def __init__(self, settings: ServeConfig, journal: Journal) -> None:
        environment = settings.opentelemetry
        self.sampler: Sampler = make_sampler(read_sampling(environment))
        self._journal = journal
        self._settings = settings
        self._resource = service_resource(version("whence"), environment=environment)
        unused = unused_variables(environment)
        if unused:
            _log.warning("set and not used by whence: %s", ", ".join(unused))
        self._content = read_content_capture(environment)
        destination = otlp_settings(environment, "metrics")
        push = read_push_options(destination, environment)
        self._metrics = Metrics(
            journal,
            self._resource,
            version("whence"),
            push=push,
        )
        self._metrics.parts.journal = journal
        self._exporters = self._span_exporter() | self._event_exporter()
        for name, exporter in self._exporters.items():
            self._metrics.parts.exports[name] = exporter.stats
            self._metrics.parts.lags[name] = exporter.behind
        self._health = Health(
            version("whence"),
            consumers=self._metrics.parts.lags,
            exports={name: exporter.health for name, exporter in self._exporters.items()},
            hide_words=self._content is not ContentCapture.NO_CONTENT,
        )
        self._health.journal_trouble = lambda: journal.trouble.reason if journal.trouble else ""
        self._page: MetricsServer | None = None

    async def start(self) -> None:
        """Starts following the journal, and serving the page.

        Raises:
            ConfigurationError: the page cannot listen where it should.
        """
        self._journal.time_commits(self._metrics.committed)
        self._metrics.start()
        for exporter in self._exporters.values():
            exporter.start()
        if self._settings.metrics_listen:
            host, port = parse_host_port(self._settings.metrics_listen)
            page = MetricsServer(self._metrics.page.render, self._health.answer, host, port)
            await page.start()
            self._page = page
            _log.info("metrics are on %s", page.url)

    def watch_start(
        self,
        engine: Engine,
        is_serving: Callable[[], bool],
        is_draining: Callable[[], bool],
    ) -> None:
        """Lets those who ask after the server's health see how its start gets on."""
        self._health.is_serving, self._health.is_draining = is_serving, is_draining
        self._health.engine = _EngineHealth(engine)

    def watch(self, engine: Engine, generations: Generations) -> None:
        """Lets the metrics, and the health, look at what runs."""
        self._metrics.parts.generations = self._health.generations = generations
        self._metrics.parts.engine = _Engine(engine, generations, self._settings.max_cache_tokens)
        self._health.engine = _EngineHealth(engine, generations)

    async def close(self) -> None:
        """Sends what is committed, for as long as that may take, and lets go of everything."""
        try:
            await self._journal.flush()
            for exporter in self._exporters.values():
                if not await exporter.flush(_FLUSH_S):
                    _log.warning("spans are left to send; they go out after the next start")
        finally:
            for exporter in self._exporters.values():
                await exporter.close()
            if self._page is not None:
                await self._page.close()
            await self._metrics.close()

    def _span_exporter(self) -> dict[str, SpanExporter]:
        destination = self._settings.span_destination
        if destination is None:
            return {}
        options = ExportOptions(
            SPANS,
            self._settings.step_spans,
            step_candidates=not self._settings.no_step_candidates,
            content=self._content,
        )
        sink = sink_for(destination)
        return {SPANS: self._exporter(sink, options)}

    def _event_exporter(self) -> dict[str, SpanExporter]:
        # Read even where nothing is sent: what is wrong in it is to be known at the start.
        destination = otlp_settings(self._settings.opentelemetry, "logs")
        if not self._content.on_events:
            return {}
        if destination is None:
            raise ConfigurationError(
                f"{CAPTURE_VARIABLE} is {self._content.value}, and there is nowhere to send events "
                "to: set OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, or choose SPAN_ONLY"
            )
        sink = sink_for(destination, EXPORT_LOGS_METHOD)
        encoder = EventEncoder(self._journal, self._content)
        return {EVENTS: self._exporter(sink, ExportOptions(EVENTS), encoder)}

    def _exporter(
        self, sink: SpanSink, options: ExportOptions, events: EventEncoder | None = None
    ) -> SpanExporter:
        return SpanExporter(
            self._journal,
            sink,
            self._resource,
            version("whence"),
            options=options,
            encode=None if events is None else events.events_of,
            describe=describe_span if events is None else describe_event,
            hide_words=self._content is not ContentCapture.NO_CONTENT,
        )


@dataclass(frozen=True, slots=True)
class _Engine:
    """The engine as the metrics look at it."""

    supervisor: Engine
    generations: Generations
    max_cache_tokens: int

    @property
    def pid(self) -> int | None:
        return self.supervisor.pid

    @property
    def batch_size(self) -> int:
        return self.generations.activity.batch_size

    @property
    def num_cache_tokens(self) -> int:
        return self.generations.activity.num_cache_tokens

    @property
    def num_prefill_chunks(self) -> int:
        return self.generations.activity.num_prefill_chunks

    @property
    def num_restarts(self) -> int:
        return self.generations.activity.num_restarts


@dataclass(frozen=True, slots=True)
class _EngineHealth:
    """The engine as the health looks at it, from the start on."""

    supervisor: Engine
    generations: Generations | None = None

    @property
    def state(self) -> str:
        return self.supervisor.state

    @property
    def num_restarts(self) -> int:
        return self.generations.activity.num_restarts if self.generations is not None else 0
