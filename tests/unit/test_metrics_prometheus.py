"""The page: the same names and numbers as the official exporter's, and exemplars besides."""

from collections.abc import Iterator
from typing import Any

import pytest
from metrics_parts import (
    OPENMETRICS,
    Engine,
    Generations,
    bring_to_life,
    busy,
    exemplars_in,
    families_of,
    live_server,
    measuring,
    value_of,
)
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from telemetry_journal import MemoryJournal

from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.metrics import catalogue
from whence_server.telemetry.metrics.catalogue import Kind
from whence_server.telemetry.metrics.prometheus import Translation, get_unit_name, make_target_info
from whence_server.telemetry.metrics.reader import MetricsReader
from whence_server.telemetry.metrics.step_histograms import StepHistograms


@pytest.fixture
def journal() -> MemoryJournal:
    return MemoryJournal()


def test_names_labels_and_numbers_are_the_official_exporters() -> None:
    """Every instrument of the catalogue, through both, from one provider."""
    registry, resource = CollectorRegistry(), make_service_resource("1")
    official = PrometheusMetricReader(registry=registry, scope_info_enabled=False)
    ours = MetricsReader(StepHistograms(0), resource, "1")
    views = [
        View(
            instrument_name=it.name,
            aggregation=ExplicitBucketHistogramAggregation(it.boundaries),
        )
        for it in catalogue.ALL
        if it.kind is Kind.HISTOGRAM
    ]
    provider = MeterProvider([official, ours], resource, views=views)
    meter = provider.get_meter("whence", "1")
    for number, it in enumerate(catalogue.ALL):
        rows: list[dict[str, Any]] = [dict.fromkeys(it.attributes, 'a "quoted"\nvalue\\')]
        if it.attributes:
            rows.append({it.attributes[0]: "only"})
        for row in rows:
            if it.kind is Kind.COUNTER:
                meter.create_counter(it.name, it.unit, it.description).add(number, row)
            elif it.kind is Kind.GAUGE:
                meter.create_gauge(it.name, it.unit, it.description).set(number - 3, row)
            else:
                histogram = meter.create_histogram(it.name, it.unit, it.description)
                for value in (0.0, 0.01, 1e9):
                    histogram.record(value, row)
    translated = [make_target_info(resource), *Translation().translate(ours.read())]

    class Ours:
        def collect(self) -> Iterator[Any]:
            return iter(translated)

    assert generate_latest(Ours()) == generate_latest(registry)  # type: ignore[arg-type]
    provider.shutdown()


def test_an_unknown_unit_is_an_error() -> None:
    with pytest.raises(ValueError, match="'furlong'"):
        get_unit_name("furlong")


async def test_the_page_has_the_format_that_the_scraper_accepts(journal: MemoryJournal) -> None:
    async with measuring(journal) as metrics:
        busy(journal)
        assert await metrics.flush(30)
        modern = metrics.page.render(OPENMETRICS + ";q=0.5,text/plain;version=0.0.4;q=0.2")
        classic = metrics.page.render("text/html")
        odd = metrics.page.render("application/openmetrics-text; version=one")
    assert modern.content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert modern.body.endswith(b"# EOF\n")
    assert b'# {span_id="' in modern.body
    assert classic.content_type == odd.content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"span_id" not in classic.body
    names = {family.name for family in text_string_to_metric_families(classic.body.decode())}
    assert "gen_ai_server_request_duration_seconds" in names


async def test_two_scrapers_in_turn_see_the_same_exemplars(journal: MemoryJournal) -> None:
    async with measuring(journal) as metrics:
        journal.append_generation("a", 3)
        assert await metrics.flush(30)
        first = list(exemplars_in(families_of(metrics)))
        assert first
        assert list(exemplars_in(families_of(metrics))) == first


async def test_the_resource_is_target_info(journal: MemoryJournal) -> None:
    environment = {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test"}
    async with measuring(journal, environment) as metrics:
        page = families_of(metrics)
    labels = {"service_name": "whence", "service_version": "9.8.7"}
    labels["deployment_environment_name"] = "test"
    assert value_of(page, "target_info", **labels) == 1


async def test_live_parts_are_shown_once_they_exist(
    journal: MemoryJournal,
) -> None:
    live = live_server()
    async with measuring(journal, live=live) as metrics:
        before = families_of(metrics)
        bring_to_life(live, metrics)
        page = families_of(metrics)
    assert "whence_generations_running" not in before
    assert value_of(before, "whence_cursor_lag", whence_consumer="metrics") == 0
    assert value_of(page, "whence_generations_running") == 3
    assert value_of(page, "whence_sequences_waiting") == 2
    assert value_of(page, "whence_batch_size") == 4
    assert value_of(page, "whence_cache_tokens_used") == 100
    assert value_of(page, "whence_cache_tokens_free") == 3996
    assert value_of(page, "whence_prefill_chunks_total") == 7
    assert value_of(page, "whence_prefix_cache_tokens") == 48
    assert value_of(page, "whence_engine_restarts_total") == 1
    assert value_of(page, "whence_journal_size_bytes") == 12345
    assert value_of(page, "whence_journal_used_bytes") == 9876
    deleted = {
        cause: value_of(page, "whence_retention_deleted_total", whence_retention_cause=cause)
        for cause in ("age", "size")
    }
    assert deleted == {"age": 8, "size": 1}
    assert value_of(page, "whence_retention_unread_total") == 2
    assert value_of(page, "whence_retention_waiting") == 6
    assert value_of(page, "whence_retention_held") == 5
    assert value_of(page, "whence_journal_commit_duration_seconds_bucket", le="0.005") == 1
    assert value_of(page, "whence_cursor_lag", whence_consumer="otlp-spans") == 42
    outcomes = {
        outcome: value_of(page, "whence_export_spans_total", whence_export_outcome=outcome)
        for outcome in ("exported", "rejected", "set_aside")
    }
    assert outcomes == {"exported": 10, "rejected": 3, "set_aside": 2}
    assert value_of(page, "whence_export_requests_total") == 5
    assert value_of(page, "whence_export_retries_total") == 4


async def test_the_engines_process_is_shown_while_there_is_one(journal: MemoryJournal) -> None:
    import os

    import psutil

    engine, live = Engine(pid=None), live_server()
    live.show_start(engine, is_serving=lambda: True, is_draining=lambda: False)
    live.show_generations(Generations())
    async with measuring(journal, live=live) as metrics:
        assert "whence_engine_process_resident_memory_bytes" not in families_of(metrics)
        engine.pid = os.getpid()
        page = families_of(metrics)
    own = value_of(page, "process_start_time_seconds")
    assert value_of(page, "whence_engine_process_start_time_seconds") == own
    assert abs(own - psutil.Process().create_time()) < 2
