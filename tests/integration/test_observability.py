"""A running server as its operators see it: metrics page, logs, samplers, content that stays in."""

import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from away_witness import AWAY_WITNESS
from deploy_queries import (
    NEVER_ON_A_SOUND_SERVER,
    dashboard_queries,
    read_query,
    rule_queries,
    rules,
)
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc
from whence_server.demo.receiver import Receiver
from whence_server.telemetry.metrics.catalogue import ALL

SECRET = "zanzibar quokka"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def generate(
    target: str, prompt: str, num_tokens: int = 12, traceparent: str = ""
) -> g.GenerationFinished:
    metadata = [("traceparent", traceparent)] if traceparent else []
    request = g.GenerateRequest(
        prompt=prompt,
        decoding=g.Decoding(sample=g.Sample(seed=1), max_new_tokens=num_tokens, ignore_eos=True),
    )
    with grpc.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        return list(stub.Generate(request, metadata=metadata))[-1].event.finished


def complete_over_http(url: str) -> None:
    """Generate a token by OpenAI's API."""
    asked = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps({"prompt": "The quick", "max_tokens": 1}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(asked) as answer:
        assert answer.status == 200


def page_of(process: ServerProcess, accept: str = "") -> str:
    headers = {"Accept": accept} if accept else {}
    asked = urllib.request.Request(f"{process.find_metrics()}/metrics", headers=headers)
    with urllib.request.urlopen(asked) as answer:
        return answer.read().decode()


def page_with(process: ServerProcess, pattern: str, accept: str = "") -> str:
    """Return the page once a line begins with the sample, which arrives through the journal."""
    deadline = time.monotonic() + 60
    while re.search(f"^{pattern}", page := page_of(process, accept), re.MULTILINE) is None:
        assert time.monotonic() < deadline, page
        time.sleep(0.01)
    return page


def value_of(page: str, series: str) -> float:
    (line,) = [line for line in page.splitlines() if line.startswith(series)]
    return float(line.split("#")[0].rsplit(" ", 1)[1])


@pytest.fixture(scope="module")
def observed(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    with ServerProcess(
        tiny_model("gpt2"),
        tmp_path_factory.mktemp("observed"),
        *(
            "--model-name",
            "tiny",
            "--metrics-listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
        ),
        *("--log-format", "json", "--log-level", "debug"),
        *AWAY_WITNESS,
    ) as process:
        yield process


def test_the_page_shows_what_the_server_did(observed: ServerProcess) -> None:
    generate(observed.target, "The quick", 20, PARENT)
    # The end is the last that is counted: all tokens are by then.
    observed_page = page_with(observed, "whence_generations_finished_total{")
    assert value_of(observed_page, "whence_tokens_generated_total{") >= 20
    assert value_of(observed_page, "whence_generations_running") == 0
    assert value_of(observed_page, "whence_batch_size") == 0
    assert value_of(observed_page, "whence_cache_tokens_used") == 0
    assert value_of(observed_page, "whence_cache_tokens_free") == 131_072
    assert value_of(observed_page, "whence_prefill_chunks_total") >= 1
    assert value_of(observed_page, "whence_engine_restarts_total") == 0
    assert value_of(observed_page, "whence_journal_size_bytes") > 1_000
    assert value_of(observed_page, "whence_journal_commit_duration_seconds_count") >= 1
    assert value_of(observed_page, "whence_step_entropy_count") >= 20
    assert "whence_engine_process_resident_memory_bytes" in observed_page


def test_exemplars_lead_to_the_trace(observed: ServerProcess) -> None:
    generate(observed.target, "The quick", 5, PARENT)
    sample = 'gen_ai_server_request_duration_seconds_bucket.* # .*trace_id="0af7651916cd43dd'
    page_with(observed, sample, "application/openmetrics-text; version=1.0.0")


def test_every_metric_of_the_catalogue_is_on_a_running_servers_page(
    observed: ServerProcess,
) -> None:
    generate(observed.target, "The quick", 5)
    complete_over_http(observed.http_url)
    # This server exports nothing, and nothing that it recorded was unreadable.
    stems = {definition.name.replace(".", "_") for definition in ALL}
    stems = {stem for stem in stems if not stem.startswith("whence_export")}
    for stem in stems - {"whence_metrics_unreadable"}:
        page_with(observed, f"# TYPE {stem}")


async def test_every_metric_of_dashboards_and_rules_is_on_a_running_servers_page(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    queries = [*dashboard_queries(), *rule_queries()]
    asked = {name for query in queries for name in read_query(query.text).metrics}
    # The last is pushed by a training.
    asked -= NEVER_ON_A_SOUND_SERVER | {"up", "whence_training_non_finite_total"}
    asked -= {rule["record"] for rule in rules("record")}
    receiver = Receiver()
    await receiver.start()
    try:
        with ServerProcess(
            tiny_model("gpt2"),
            tmp_path,
            *("--metrics-listen", "127.0.0.1:0", "--otlp-endpoint", receiver.endpoint),
            *AWAY_WITNESS,
            *("--http-listen", "127.0.0.1:0"),
        ) as process:
            await asyncio.to_thread(generate, process.target, "The quick", 5)
            await asyncio.to_thread(complete_over_http, process.http_url)
            await receiver.wait_for(5)
            missing = asked
            async with asyncio.timeout(30):
                while missing:
                    page = await asyncio.to_thread(page_of, process)
                    missing = asked - set(re.findall(r"^\w+", page, re.MULTILINE))
    except TimeoutError:
        raise AssertionError(f"not on the page: {sorted(missing)}") from None
    finally:
        await receiver.close()


def test_logs_are_objects_with_ids_and_never_hold_content(observed: ServerProcess) -> None:
    finished = generate(observed.target, SECRET, 8, PARENT)
    lines: list[str] = []
    deadline = time.monotonic() + 60
    while not lines and time.monotonic() < deadline:
        lines = [line for line in observed.log if "0af7651916cd43dd8448eb211c80319c" in line]
        page_of(observed)
    records = [json.loads(line) for line in observed.log]
    (said, *_) = [json.loads(line) for line in lines]
    assert said["level"] == "INFO"
    assert said["logger"] == "whence_server.generation.running"
    assert said["generation_id"]
    assert "tokens" in said["message"]
    assert all({"timestamp", "level", "logger", "message"} <= record.keys() for record in records)
    everything = "".join(observed.log)
    assert "zanzibar" not in everything
    assert "quokka" not in everything
    assert finished.sequences[0].text not in everything


async def test_an_unsampled_request_is_journalled_and_makes_no_span(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    receiver = Receiver()
    await receiver.start()
    try:
        with ServerProcess(
            tiny_model("gpt2"),
            tmp_path,
            *("--otlp-endpoint", receiver.endpoint),
            environment={"OTEL_TRACES_SAMPLER": "always_off"},
        ) as process:
            finished = await asyncio.to_thread(generate, process.target, "The quick", 5, PARENT)
            assert finished.num_generated_tokens == 5
            status = await asyncio.to_thread(process.terminate)
            assert status == 0
        assert receiver.spans == []
    finally:
        await receiver.close()


@pytest.mark.parametrize(
    ("environment", "flags", "words"),
    [
        ({"OTEL_TRACES_SAMPLER": "sometimes"}, [], "OTEL_TRACES_SAMPLER"),
        ({"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "yes"}, [], "must be one of"),
        (
            {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "EVENT_ONLY"},
            [],
            "events have no destination",
        ),
        ({"OTEL_METRICS_EXPORTER": "prometheus"}, [], "give --metrics-listen"),
        ({"OTEL_LOGS_EXPORTER": "console"}, [], "OTEL_LOGS_EXPORTER 'console': expected otlp"),
        ({}, ["--metrics-listen", "nowhere"], "expected HOST:PORT"),
        ({}, ["--log-format", "xml"], "console, json"),
    ],
)
def test_invalid_telemetry_settings_prevent_the_start(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    environment: dict[str, str],
    flags: list[str],
    words: str,
) -> None:
    process = ServerProcess(tiny_model("gpt2"), tmp_path, *flags, environment=environment)
    assert process.wait() == 2
    assert words in "".join(process.log)


def test_a_metrics_port_in_use_prevents_the_start(
    observed: ServerProcess, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    address = observed.find_metrics().removeprefix("http://")
    process = ServerProcess(tiny_model("gpt2"), tmp_path, "--metrics-listen", address)
    assert process.wait() == 2
    assert "the metrics page cannot listen" in "".join(process.log)
