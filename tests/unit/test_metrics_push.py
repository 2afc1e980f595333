"""Pushing: what is read from the variables, what travels, and what DELTA leaves out."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from metrics_parts import AT_ONCE, bring_to_life, live_server, measuring, metrics_in
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as otlp
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
)
from telemetry_journal import TRACE_ID, MemoryJournal
from waiting import wait_until

from whence_server.config.telemetry import read_push_options
from whence_server.domain.errors import ConfigurationError
from whence_server.domain.otlp import OtlpProtocol, OtlpSettings
from whence_server.domain.telemetry import PushOptions, TemporalityPreference
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.metrics import Metrics
from whence_server.telemetry.metrics.otlp import make_otlp_exporter

NOWHERE = OtlpSettings(endpoint="http://127.0.0.1:1")
SOON_S = 0.01
METHOD = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"


class Collecting(MetricExporter):
    """Keeps what it is given; fails where it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[MetricsData] = []
        self.troubles: list[Exception] = []
        self.refuses = 0
        self.is_shut_down = False

    def export(self, metrics_data: MetricsData, *_: Any, **__: Any) -> MetricExportResult:
        if self.troubles:
            raise self.troubles.pop()
        if self.refuses:
            self.refuses -= 1
            return MetricExportResult.FAILURE
        self.given.append(metrics_data)
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_: Any) -> None:
        self.is_shut_down = True


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


def test_the_variables_of_metrics_are_read() -> None:
    assert read_push_options(NOWHERE, {}) == PushOptions(NOWHERE, 60.0)
    variables = {
        "OTEL_METRIC_EXPORT_INTERVAL": "1500",
        "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE": "Delta",
    }
    options = read_push_options(NOWHERE, variables)
    assert options == PushOptions(NOWHERE, 1.5, TemporalityPreference.DELTA)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "-5"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1e3"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "sideways"),
    ],
)
def test_an_invalid_metrics_variable_is_an_error(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} '{value}': expected"):
        read_push_options(NOWHERE, {name: value})


def counts_of(data: MetricsData, name: str) -> tuple[int, AggregationTemporality]:
    metric = metrics_in(data)[name]
    return sum(
        point.count for point in metric.data.data_points
    ), metric.data.aggregation_temporality


@pytest.mark.parametrize("preference", TemporalityPreference)
async def test_counts_have_the_configured_temporality(
    journal: MemoryJournal, preference: TemporalityPreference
) -> None:
    exporter = Collecting()
    push = PushOptions(NOWHERE, SOON_S, preference)
    live = live_server()
    async with measuring(journal, push=push, exporter=exporter, live=live) as metrics:
        bring_to_life(live, metrics)
        for number in (1, 2):
            journal.append_generation(f"g{number}", 10)
            assert await metrics.flush(30)
            seen = len(exporter.given)
            await wait_until(lambda seen=seen: len(exporter.given) > seen + 1)
    assert exporter.is_shut_down
    for name, each in (
        (catalogue.STEP_ENTROPY.name, 10),
        (catalogue.REQUEST_DURATION.name, 1),
    ):
        with_it = [data for data in exporter.given if name in metrics_in(data)]
        counts = [counts_of(data, name) for data in with_it]
        if preference is TemporalityPreference.CUMULATIVE:
            assert {count for count, _ in counts} == {each, 2 * each}
            assert {kind for _, kind in counts} == {AggregationTemporality.CUMULATIVE}
        else:
            assert [count for count, _ in counts] == [each, each]
            assert {kind for _, kind in counts} == {AggregationTemporality.DELTA}
        if (
            name == catalogue.STEP_ENTROPY.name
            and preference is not TemporalityPreference.CUMULATIVE
        ):
            first, second = (metrics_in(data)[name].data.data_points[0] for data in with_it)
            assert first.time_unix_nano < second.start_time_unix_nano < second.time_unix_nano
            assert second.sum == first.sum
            assert second.bucket_counts == first.bucket_counts
    observed = metrics_in(exporter.given[-1])[catalogue.PREFILL_CHUNKS.name].data
    assert (observed.aggregation_temporality is AggregationTemporality.DELTA) == (
        preference is TemporalityPreference.DELTA
    )


async def test_an_exemplar_is_pushed_once(journal: MemoryJournal) -> None:
    exporter = Collecting()
    push = PushOptions(NOWHERE, SOON_S)
    async with measuring(journal, push=push, exporter=exporter) as metrics:
        journal.append_generation("a", 5)
        assert await metrics.flush(30)
        seen = len(exporter.given)
        await wait_until(lambda: len(exporter.given) > seen + 2)
    name = catalogue.STEP_ENTROPY.name
    points = [
        metrics_in(data)[name].data.data_points[0]
        for data in exporter.given
        if name in metrics_in(data)
    ]
    assert len(points) >= 2
    assert [len(point.exemplars) for point in points][:2] == [1, 0]
    assert sum(len(point.exemplars) for point in points) == 1


async def test_the_last_push_happens_at_the_end_and_failures_do_not_end_the_pushing(
    journal: MemoryJournal, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Collecting()
    exporter.troubles = [OSError("no way out")]
    push = PushOptions(NOWHERE, SOON_S)
    async with measuring(journal, push=push, exporter=exporter) as metrics:
        await wait_until(lambda: len(exporter.given) > 1)
        assert "no way out" in caplog.text
    never = PushOptions(NOWHERE, 3600.0)
    exporter = Collecting()
    async with measuring(journal, push=never, exporter=exporter) as metrics:
        journal.append_generation("a", 5)
    assert len(exporter.given) == 1
    assert counts_of(exporter.given[0], catalogue.REQUEST_DURATION.name)[0] == 1
    del metrics


async def test_the_first_failed_push_and_the_first_successful_one_after_it_are_logged(
    journal: MemoryJournal, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = Collecting()
    exporter.refuses = 5
    async with measuring(journal, push=PushOptions(NOWHERE, SOON_S), exporter=exporter):
        await wait_until(lambda: len(exporter.given) > 1)
    assert exporter.refuses == 0
    assert caplog.text.count("the points until then are lost") == 1
    assert caplog.text.count("metrics are pushed again") == 1


@pytest.mark.parametrize("preference", TemporalityPreference)
async def test_the_counts_of_a_failed_push_are_in_a_later_one(
    journal: MemoryJournal, preference: TemporalityPreference
) -> None:
    exporter = Collecting()
    exporter.troubles = [OSError("no way out") for _ in range(10)]
    push = PushOptions(NOWHERE, SOON_S, preference)
    async with measuring(journal, push=push, exporter=exporter) as metrics:
        for number, left in ((1, 7), (2, 3)):
            journal.append_generation(f"g{number}", 10)
            assert await metrics.flush(30)
            await wait_until(lambda left=left: len(exporter.troubles) < left)
        await wait_until(lambda: len(exporter.given) > 1)
    for name, each in (
        (catalogue.STEP_ENTROPY.name, 10),
        (catalogue.REQUEST_DURATION.name, 1),
    ):
        counts = [counts_of(data, name)[0] for data in exporter.given if name in metrics_in(data)]
        told = max(counts) if preference is TemporalityPreference.CUMULATIVE else sum(counts)
        assert told == 2 * each


@pytest.mark.parametrize(
    ("protocol", "endpoint"),
    [(OtlpProtocol.GRPC, "https://a:1"), (OtlpProtocol.HTTP_PROTOBUF, "https://a:1/v1/metrics")],
)
def test_invalid_certificates_are_an_error(protocol: OtlpProtocol, endpoint: str) -> None:
    nonsense = Path(__file__)
    settings = OtlpSettings(endpoint=endpoint, protocol=protocol, certificate=nonsense)
    with pytest.raises(ConfigurationError, match=r"test_metrics_push.py holds no certificates"):
        make_otlp_exporter(settings, {})


async def test_an_unreachable_collector_does_not_delay_the_shutdown(journal: MemoryJournal) -> None:
    options = PushOptions(NOWHERE, SOON_S)
    metrics = Metrics(
        journal, make_service_resource("1"), "1", live_server(), {}, push=options, options=AT_ONCE
    )
    metrics.start()
    async with asyncio.timeout(8):  # far below the exporter's own 10 s for an answer
        await metrics.close(timeout_s=0.1)


Taken = list[tuple[otlp.ExportMetricsServiceRequest, dict[str, str]]]


@pytest.fixture
async def over_grpc() -> AsyncIterator[tuple[str, Taken]]:
    taken: Taken = []

    async def export(request: otlp.ExportMetricsServiceRequest, context: Any) -> Any:
        taken.append((request, dict(context.invocation_metadata())))
        return otlp.ExportMetricsServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=otlp.ExportMetricsServiceRequest.FromString,
        response_serializer=otlp.ExportMetricsServiceResponse.SerializeToString,
    )
    service, method = METHOD.strip("/").split("/")
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {method: handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"http://127.0.0.1:{port}", taken
    await server.stop(None)


@pytest.fixture
async def over_http() -> AsyncIterator[tuple[str, Taken]]:
    taken: Taken = []

    async def export(request: web.Request) -> web.Response:
        body = otlp.ExportMetricsServiceRequest.FromString(await request.read())
        taken.append((body, {name.lower(): value for name, value in request.headers.items()}))
        return web.Response()

    application = web.Application()
    application.router.add_post("/v1/metrics", export)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1/metrics", taken
    await runner.cleanup()


@pytest.mark.parametrize("protocol", OtlpProtocol)
async def test_metrics_arrive_over_otlp(
    journal: MemoryJournal,
    protocol: OtlpProtocol,
    over_grpc: tuple[str, Taken],
    over_http: tuple[str, Taken],
) -> None:
    endpoint, taken = over_grpc if protocol is OtlpProtocol.GRPC else over_http
    destination = OtlpSettings(
        endpoint=endpoint, protocol=protocol, headers={"x-key": "k"}, gzip=True
    )
    live = live_server()
    async with measuring(journal, push=PushOptions(destination, 3600.0), live=live) as metrics:
        bring_to_life(live, metrics)
        journal.append_generation("a", 5)
    (arrived,) = taken
    request, headers = arrived
    assert headers["x-key"] == "k"
    (resource,) = request.resource_metrics
    (scope,) = resource.scope_metrics
    assert (scope.scope.name, scope.scope.version) == ("whence", "9.8.7")
    named = {metric.name: metric for metric in scope.metrics}
    absent = {catalogue.UNREADABLE_ENTRIES.name, catalogue.HTTP_DURATION.name}
    assert named.keys() == {it.name for it in catalogue.ALL} - absent
    entropy = named[catalogue.STEP_ENTROPY.name].histogram.data_points[0]
    assert entropy.count == 5
    assert tuple(entropy.explicit_bounds) == catalogue.ENTROPY_NATS
    assert not entropy.HasField("min")
    assert entropy.exemplars[0].trace_id.hex() == TRACE_ID
