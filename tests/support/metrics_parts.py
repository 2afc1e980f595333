"""Journal entries of every kind, parts of a live server, and readers of the metrics page."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.sdk.metrics.export import Metric, MetricsData
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from telemetry_journal import MemoryJournal, call, finished, started, step

from whence.v1 import call_pb2
from whence.v1 import generation_pb2 as g
from whence_server.config.telemetry import read_resource
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import JournalError
from whence_server.proof.log.publisher import PublisherStats
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.lag import Lag
from whence_server.telemetry.live import Consumer, LiveServer
from whence_server.telemetry.metrics.metrics import Metrics, MetricsOptions

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
AT_ONCE = MetricsOptions(linger_s=0.0)


@dataclass
class Activity:
    batch_size: int = 4
    num_cache_tokens: int = 100
    num_prefix_tokens: int = 48
    num_prefill_chunks: int = 7
    num_restarts: int = 1


@dataclass
class Generations:
    num_running: int = 3
    num_waiting_sequences: int = 2
    num_unrecorded: int = 0
    activity: Activity = field(default_factory=Activity)


@dataclass
class Retention:
    used_bytes: int = 9_876
    num_held: int = 5
    num_waiting: int = 6
    num_unread: int = 2
    num_deleted: dict[str, int] = field(default_factory=lambda: {"age": 8, "size": 1})


@dataclass
class Engine:
    pid: int | None = None
    state: str = "running"


@dataclass
class Files:
    size_bytes: int = 12345
    trouble: JournalError | None = None


def live_server() -> LiveServer:
    """Return a server whose model is not loaded yet."""
    return LiveServer(Files(), max_cache_tokens=4096)


def busy_export() -> Consumer:
    stats = ExportStats(
        num_exported=10, num_requests=5, num_retries=4, num_rejected=3, num_set_aside=2
    )
    return Consumer(lambda: Lag(42, 1.5), stats)


@asynccontextmanager
async def measuring(
    journal: MemoryJournal,
    environment: Mapping[str, str] = {},
    live: LiveServer | None = None,
    **options: Any,
) -> AsyncIterator[Metrics]:
    """Run metrics that follow the journal from its present end, next to a span export."""
    options = {"options": AT_ONCE, **options}
    resource = make_service_resource("9.8.7", configured=read_resource(environment))
    exports = {"otlp-spans": busy_export()}
    metrics = Metrics(journal, resource, "9.8.7", live or live_server(), exports, **options)
    metrics.start()
    try:
        yield metrics
    finally:
        await metrics.close()


def bring_to_life(live: LiveServer, metrics: Metrics) -> None:
    live.show_start(Engine(), is_serving=lambda: True, is_draining=lambda: False)
    live.show_generations(Generations())
    live.retention = Retention()
    live.transparency = PublisherStats(size=3, failures={"example.com/w": 1})
    live.refused = {"missing": 2, "unknown": 1, "expired": 1, "invalid": 1, "scope": 3}
    metrics.record_commit(0.004)


def busy(journal: MemoryJournal) -> None:
    """Append generations and calls with every end, and one entry that cannot be read."""
    for reason in g.FinishReason.values()[1:]:
        name = f"ends-{reason}"
        failed = {}
        if reason == g.FINISH_REASON_FAILED:
            failed = {"failure": g.Failure(code=13, reason="NON_FINITE_LOGITS", message="text")}
        operation = "chat" if reason % 2 else "text_completion"
        journal.append(name, EntryKind.STARTED, started(name, operation=operation))
        for index in range(4):
            journal.append(name, EntryKind.STEP, step(index))
        end = finished(4, finish_reason=reason, queue_ns=2_000_000, prefill_ns=8_000_000, **failed)
        journal.append(name, EntryKind.FINISHED, end)
        journal.append(name, EntryKind.CALL, call(name, 4, status_code=reason))
    for code in (0, 13, 99):
        journal.append("", EntryKind.CALL, call("x", status_code=code, method=f"/odd/{code}"))
    for status, route in ((200, "/v1/completions"), (500, "/odd")):
        http = call_pb2.HttpExchange(method="POST", route=route, status_code=status)
        journal.append("", EntryKind.CALL, call("x", http=http))
    journal.append("", EntryKind.CALL, call("x", trace_id="not hex"))


def metrics_in(data: MetricsData) -> dict[str, Metric]:
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def families_of(metrics: Metrics) -> dict[str, Family]:
    """Return the families of the page, parsed as OpenMetrics."""
    text = metrics.page.render(OPENMETRICS).body.decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value_of(families: dict[str, Family], sample: str, **labels: str) -> float:
    """Return the value of the only sample with that name and these labels, among others."""
    (value,) = (
        it.value
        for family in families.values()
        for it in family.samples
        if it.name == sample and labels.items() <= it.labels.items()
    )
    return value


def exemplars_in(families: dict[str, Family]) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield the sample's name, the labels and the value of every exemplar."""
    for family in families.values():
        for sample in family.samples:
            if sample.exemplar is not None:
                yield sample.name, sample.exemplar.labels, sample.exemplar.value
