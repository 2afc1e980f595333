"""Composition of the server's telemetry: spans, events, metrics and the health page."""

import logging
from collections.abc import Mapping
from importlib.metadata import version
from types import MappingProxyType
from typing import NamedTuple

from opentelemetry.sdk.trace.sampling import Sampler

from whence_server.config import ServeConfig, find_unused_variables, read_otlp_settings
from whence_server.config.telemetry import (
    CAPTURE_VARIABLE,
    read_content_capture,
    read_push_options,
    read_resource,
    read_sampling,
    warn_of_old_capture,
)
from whence_server.domain.addresses import parse_host_port
from whence_server.domain.audit import AuditLevel
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpSettings
from whence_server.domain.telemetry import ContentCapture, StepForm
from whence_server.journal.journal import Journal
from whence_server.journal.vocabularies import Vocabularies
from whence_server.rpc.address_bound import AddressBound
from whence_server.telemetry.export.exporter import EntryEncoder, JournalExporter
from whence_server.telemetry.export.otlp_grpc import EXPORT_LOGS_METHOD
from whence_server.telemetry.export.outcomes import SpanSink
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.export.sinks import make_sink
from whence_server.telemetry.follower import DurableCursor, JournalFollower
from whence_server.telemetry.health import Health
from whence_server.telemetry.live import Consumer, LiveServer
from whence_server.telemetry.metrics.http import PLAIN, Handler, MetricsServer, PageAccess
from whence_server.telemetry.metrics.metrics import Metrics
from whence_server.telemetry.metrics.otlp import make_otlp_exporter
from whence_server.telemetry.metrics.push import choose_temporality
from whence_server.telemetry.sampling import make_sampler
from whence_server.telemetry.spans.audit import AuditEncoder
from whence_server.telemetry.spans.encoder import SpanEncoder
from whence_server.telemetry.spans.events import EventEncoder

_log = logging.getLogger(__name__)

SPANS, EVENTS, AUDIT = "otlp-spans", "otlp-events", "otlp-audit"
"""Names of the journal's cursors, one for each export."""
_FLUSH_S = 5.0
_LOGS_VARIABLES = ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "OTEL_LOGS_EXPORTER")


class Observability:
    """Exports, metrics and health page of a server.

    Args:
        settings: the server's settings.
        journal: the journal to follow; it must be closed after this object.
        vocabularies: texts of tokens, for spans that may carry text.
        live: the running server, for the metrics and the health page.
        page_access: TLS of the metrics page, and admission of requests to it.
        public: handlers of further paths beside the metrics page, which everybody may read.

    Attributes:
        sampler: decides which requests make spans.

    Raises:
        ConfigurationError: a setting has no valid meaning.
    """

    def __init__(
        self,
        settings: ServeConfig,
        journal: Journal,
        vocabularies: Vocabularies,
        live: LiveServer,
        page_access: PageAccess = PLAIN,
        *,
        public: Mapping[tuple[str, str], Handler] = MappingProxyType({}),
    ) -> None:
        environment = settings.opentelemetry
        self.sampler: Sampler = make_sampler(read_sampling(environment))
        self._journal = journal
        self._vocabularies = vocabularies
        self._settings = settings
        self._page_access = page_access
        self._public = public
        self._resource = make_service_resource(
            version("whence"), configured=read_resource(environment)
        )
        unused = find_unused_variables(environment)
        if unused:
            _log.warning("whence does not use these environment variables: %s", ", ".join(unused))
        self._content = read_content_capture(environment)
        warn_of_old_capture(environment)
        destination = read_otlp_settings(environment, "metrics")
        push = read_push_options(destination, environment)
        # Made before a sink opens connections, because it raises on invalid settings.
        exporter = (
            None
            if push is None
            else make_otlp_exporter(push.destination, choose_temporality(push.preference))
        )
        exports = self._make_exports(journal)
        self._followers = {name: export.follower for name, export in exports.items()}
        self._metrics = Metrics(
            journal,
            self._resource,
            version("whence"),
            live,
            {
                name: Consumer(export.follower.measure_lag, export.exporter.stats)
                for name, export in exports.items()
            },
            push=push,
            exporter=exporter,
        )
        live.consumers = self._metrics.consumers
        self._health = Health(
            version("whence"),
            live,
            self._metrics.consumers,
            hide_words=self._content is not ContentCapture.NO_CONTENT,
        )
        self._page: MetricsServer | None = None
        self._bound: AddressBound | None = None

    @property
    def export_names(self) -> tuple[str, ...]:
        """Names of the cursors of all exports."""
        return tuple(self._followers)

    async def start(self) -> None:
        """Start following the journal, and serving the metrics page.

        Raises:
            ConfigurationError: the page cannot listen at the configured address.
        """
        self._journal.time_commits(self._metrics.record_commit)
        self._metrics.start()
        for follower in self._followers.values():
            follower.start()
        if self._settings.metrics_listen:
            host, port = parse_host_port(self._settings.metrics_listen)
            page = MetricsServer(
                self._metrics.page.render,
                self._health.answer,
                host,
                port,
                access=self._page_access,
                public=self._public,
            )
            await page.start()
            self._page = page
            most = self._settings.max_connections_per_address
            if most and self._page_access.tls is not None:
                # The page learns of a connection after its handshake.
                self._bound = AddressBound({page.port}, most)
                self._bound.start()
            _log.info("metrics are on %s", page.url)

    async def close(self) -> None:
        """Send the committed entries, as far as time allows, and close all exports and the page."""
        try:
            await self._journal.flush()
            for follower in self._followers.values():
                if not await follower.flush(_FLUSH_S):
                    _log.warning("some spans are not sent yet; they are sent after the next start")
        finally:
            for follower in self._followers.values():
                await follower.close()
            if self._bound is not None:
                await self._bound.close()
            if self._page is not None:
                await self._page.close()
            await self._metrics.close()

    def make_followers(self, journal: Journal) -> dict[str, JournalFollower]:
        """Make the exports of the log of another server, by the names of their cursors."""
        return {name: export.follower for name, export in self._make_exports(journal).items()}

    def _make_exports(self, journal: Journal) -> "dict[str, _Export]":
        return (
            self._make_span_export(journal)
            | self._make_event_export(journal)
            | self._make_audit_export(journal)
        )

    def _make_span_export(self, journal: Journal) -> "dict[str, _Export]":
        destination = self._settings.span_destination
        if destination is None:
            return {}
        encoder = make_span_encoder(self._settings, journal, self._vocabularies)
        if self._content.on_spans:
            _log.info(
                "spans carry the text of prompts, outputs and tokens, because %s is %s",
                CAPTURE_VARIABLE,
                self._content.value,
            )
        return {SPANS: self._make_export(journal, SPANS, make_sink(destination), encoder)}

    def _make_event_export(self, journal: Journal) -> "dict[str, _Export]":
        # Read even if no events are sent, so that invalid settings are reported at the start.
        destination = read_otlp_settings(self._settings.opentelemetry, "logs")
        if not self._content.on_events:
            return {}
        if destination is None:
            raise ConfigurationError(
                f"{CAPTURE_VARIABLE} is {self._content.value}, and events have no destination: set "
                "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT, or choose SPAN_ONLY"
            )
        encoder = EventEncoder(journal, self._content)
        sink = make_sink(destination, EXPORT_LOGS_METHOD)
        return {EVENTS: self._make_export(journal, EVENTS, sink, encoder)}

    def _make_audit_export(self, journal: Journal) -> "dict[str, _Export]":
        settings = self._settings
        # A collector for spans alone would refuse each record: log records are asked for by name.
        is_named = not settings.opentelemetry.keys().isdisjoint(_LOGS_VARIABLES)
        destination = read_otlp_settings(settings.opentelemetry, "logs") if is_named else None
        if settings.audit_level is AuditLevel.OFF or destination is None:
            return {}
        sink = make_sink(destination, EXPORT_LOGS_METHOD)
        return {AUDIT: self._make_export(journal, AUDIT, sink, AuditEncoder())}

    def list_destinations(self) -> list[str]:
        """Return what the server exports, and to where: "otlp-spans to http://collector:4317"."""
        logs = read_otlp_settings(self._settings.opentelemetry, "logs")
        found = {SPANS: self._settings.span_destination, EVENTS: logs, AUDIT: logs}
        return [
            f"{name} to {_name_destination(destination)}"
            for name, destination in found.items()
            if name in self._followers and destination is not None
        ]

    def _make_export(
        self, journal: Journal, name: str, sink: SpanSink, encoder: EntryEncoder
    ) -> "_Export":
        exporter = JournalExporter(
            journal,
            sink,
            encoder,
            self._resource,
            version("whence"),
            hide_words=self._content is not ContentCapture.NO_CONTENT,
        )
        cursor = DurableCursor(journal, name)
        return _Export(exporter, JournalFollower(journal, exporter, cursor, name=name))


def _name_destination(destination: OtlpSettings | str) -> str:
    """Return an exporter's name, or an endpoint without a password that its URL may have."""
    endpoint = destination if isinstance(destination, str) else destination.endpoint
    scheme, found, rest = endpoint.rpartition("://")
    return scheme + found + rest.rpartition("@")[2]


def make_span_encoder(
    settings: ServeConfig, journal: Journal, vocabularies: Vocabularies
) -> SpanEncoder:
    """Make the encoder of a server's spans, which depend on its settings and journal alone.

    Raises:
        ConfigurationError: a setting has no valid meaning.
    """
    return SpanEncoder(
        journal,
        settings.step_spans,
        step_form=StepForm(settings.step_form),
        token_arrays=settings.token_arrays,
        step_candidates=not settings.no_step_candidates,
        step_summary=not settings.no_step_summary,
        token_span_names=settings.step_span_names == "token",
        unlikely_below=settings.unlikely_below,
        content=read_content_capture(settings.opentelemetry),
        vocabularies=vocabularies,
    )


class _Export(NamedTuple):
    """Exporter, and the follower that passes entries to it."""

    exporter: JournalExporter
    follower: JournalFollower
