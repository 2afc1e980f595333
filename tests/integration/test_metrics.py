"""The metrics over a real journal, as Prometheus itself reads them."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from metrics_parts import AT_ONCE, bring_to_life, busy_export, families_of, live_server, value_of
from prometheus_process import NEEDED, ask, prometheus
from required import skip_without
from telemetry_journal import START_NS, TRACE_ID, call, finished, started, step

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import FinishIndex, GenerationIndex, Journal
from whence_server.telemetry.export.resource import make_service_resource
from whence_server.telemetry.health import Health
from whence_server.telemetry.live import LiveServer
from whence_server.telemetry.metrics.http import MetricsServer
from whence_server.telemetry.metrics.metrics import Metrics

NUM_STREAMS = 20
NUM_STEPS = 30


def begin(journal: Journal, generation_id: str) -> None:
    index = GenerationIndex(
        generation_id=generation_id,
        trace_id=TRACE_ID,
        model="demo",
        start_time_ns=START_NS,
        request_digest="",
        labels={},
        prompt_preview="",
        num_prompt_tokens=5,
    )
    journal.create(index, started(generation_id).SerializeToString())


def end(journal: Journal, generation_id: str) -> None:
    index = FinishIndex(FinishReason.STOP, NUM_STEPS, "")
    journal.finish(generation_id, finished(NUM_STEPS).SerializeToString(), index)
    journal.record_call(generation_id, call(generation_id, NUM_STEPS).SerializeToString())


async def serve_streams(journal: Journal, prefix: str) -> None:
    """Serve streams that run at the same time."""
    ids = [f"{prefix}-{number}" for number in range(NUM_STREAMS)]
    for generation_id in ids:
        begin(journal, generation_id)
    for index in range(NUM_STEPS):
        for generation_id in ids:
            payload = step(index, entropy=index / 3).SerializeToString()
            journal.append(generation_id, EntryKind.STEP, payload)
    for generation_id in ids:
        end(journal, generation_id)
    await journal.flush()


@asynccontextmanager
async def opened(
    data_dir: Path, live: LiveServer | None = None
) -> AsyncIterator[tuple[Journal, Metrics]]:
    journal = await Journal.open(data_dir)
    exports = {"otlp-spans": busy_export()}
    metrics = Metrics(
        journal, make_service_resource("1"), "1", live or live_server(), exports, options=AT_ONCE
    )
    metrics.start()
    try:
        yield journal, metrics
    finally:
        await metrics.close()
        await journal.close()


@asynccontextmanager
async def serving(metrics: Metrics) -> AsyncIterator[MetricsServer]:
    server = MetricsServer(metrics.page.render, Health("1", live_server()).answer, "127.0.0.1", 0)
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def test_every_committed_step_is_measured_once_and_a_restart_begins_at_zero(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as (journal, metrics):
        await serve_streams(journal, "first")
        begin(journal, "cut off")
        await journal.flush()
        assert await metrics.flush(60)
        page = families_of(metrics)
        assert value_of(page, "whence_step_entropy_count") == NUM_STREAMS * NUM_STEPS
        assert value_of(page, "whence_tokens_generated_total") == NUM_STREAMS * NUM_STEPS
        assert value_of(page, "whence_generations_finished_total") == NUM_STREAMS
        assert value_of(page, "rpc_server_call_duration_seconds_count") == NUM_STREAMS
        assert value_of(page, "whence_cursor_lag", whence_consumer="metrics") == 0
    async with opened(tmp_path) as (journal, metrics):
        end(journal, "cut off")
        await journal.flush()
        assert await metrics.flush(60)
        page = families_of(metrics)
        assert value_of(page, "whence_generations_finished_total") == 1
        assert "whence_step_entropy" not in page


async def test_promtool_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        skip_without("prometheus", f"promtool is not installed: {NEEDED}")
    live = live_server()
    async with opened(tmp_path, live) as (journal, metrics), serving(metrics) as server:
        bring_to_life(live, metrics)
        await serve_streams(journal, "a")
        assert await metrics.flush(60)
        async with aiohttp.ClientSession() as session, session.get(server.url) as answer:
            page = await answer.read()
    check = await asyncio.to_thread(
        subprocess.run,
        [promtool, "check", "metrics"],
        check=False,
        input=page,
        capture_output=True,
    )
    assert (check.returncode, check.stderr.decode(), check.stdout.decode()) == (0, "", "")


async def asked(base: str, path: str, query: str, wanted: int) -> list[dict[str, Any]]:
    """Query until there are as many results as wanted."""
    # A window around now, for exemplars; a query at an instant ignores it.
    window = {"start": "1800000000", "end": "1800000099"}
    return await ask(base, path, lambda found: len(found) >= wanted, query=query, **window)


async def test_prometheus_scrapes_the_page_with_its_exemplars(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    live = live_server()
    async with opened(tmp_path / "journal", live) as (journal, metrics), serving(metrics) as server:
        bring_to_life(live, metrics)
        await serve_streams(journal, "a")
        assert await metrics.flush(60)
        with prometheus(tmp_path, f"127.0.0.1:{server.port}") as base:
            (tokens,) = await asked(base, "query", "whence_tokens_generated_total", 1)
            assert tokens["metric"]["gen_ai_request_model"] == "demo"
            assert float(tokens["value"][1]) == NUM_STREAMS * NUM_STEPS
            buckets = "sum by (le) (gen_ai_server_request_duration_seconds_bucket)"
            quantile = f"histogram_quantile(0.5, {buckets})"
            (median,) = await asked(base, "query", quantile, 1)
            assert 0.08 <= float(median["value"][1]) <= 0.16
            (up,) = await asked(base, "query", "up", 1)
            assert up["value"][1] == "1"
            series = await asked(base, "query_exemplars", "whence_step_entropy_bucket", 1)
            exemplars = [exemplar for one in series for exemplar in one["exemplars"]]
            assert exemplars
            assert all(exemplar["labels"]["trace_id"] == TRACE_ID for exemplar in exemplars)
