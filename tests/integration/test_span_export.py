"""A real server's spans, by OpenTelemetry's own variables: over HTTP, and to others' exporters."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from faulty_collector import UNAVAILABLE, Cut, FaultyCollector, Garbage
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from server_process import ServerProcess
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc
from whence_server.domain.otlp import OtlpProtocol

NUM_TOKENS = 30

EXPORTER = """
import json, os
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

class ToFile(SpanExporter):
    def export(self, spans):
        with open(os.environ["SPANS_FILE"], "a") as file:
            for span in spans:
                file.write(json.dumps([span.name, span.attributes.get("whence.token.id")]) + "\\n")
        return SpanExportResult.SUCCESS

    def shutdown(self):
        with open(os.environ["SPANS_FILE"], "a") as file:
            file.write(json.dumps(["shutdown", None]) + "\\n")
"""


async def generate(target: str) -> list[int]:
    wanted = g.GenerateRequest(
        prompt="The quick brown fox",
        decoding=g.Decoding(sample=g.Sample(seed=1), max_new_tokens=NUM_TOKENS, ignore_eos=True),
    )
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        return [
            step.token_id
            async for response in stub.Generate(wanted)
            for step in response.event.steps.steps
        ]


async def test_spans_go_over_http_through_a_collectors_faults(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    async with FaultyCollector(OtlpProtocol.HTTP_PROTOBUF).running() as collector:
        collector.faults.extend([UNAVAILABLE, Cut(stored=True), Garbage()])
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint.removesuffix("/v1/traces"),
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=a%20b",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            # They would go to the same collector.
            "OTEL_METRICS_EXPORTER": "none",
        }
        with ServerProcess(tiny_model("gpt2"), tmp_path, environment=environment) as server:
            tokens = await generate(server.target)
            # A server that ends waits for its exports for some seconds only.
            await wait_until(lambda: any(s.kind == Span.SPAN_KIND_SERVER for s in collector.spans))
            assert await asyncio.to_thread(server.terminate) == 0
        steps = {s.span_id: s for s in collector.spans if s.name == "decode_step"}
        told = [
            attribute.value.int_value
            for span in steps.values()
            for attribute in span.attributes
            if attribute.key == "whence.token.id"
        ]
        assert told == tokens
        assert len(tokens) == NUM_TOKENS
        assert (collector.path, collector.headers["x-tenant"]) == ("/v1/traces", "a b")
        assert collector.headers["content-encoding"] == "gzip"
        assert not collector.faults


async def test_spans_go_to_a_users_exporter(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "my_exporter.py").write_text(EXPORTER)
    file = tmp_path / "spans.jsonl"
    with ServerProcess(
        tiny_model("gpt2"),
        tmp_path / "data",
        "--span-exporter",
        "my_exporter:ToFile",
        environment={"PYTHONPATH": str(tmp_path), "SPANS_FILE": str(file)},
    ) as server:
        tokens = await generate(server.target)
        assert await asyncio.to_thread(server.terminate) == 0
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [token for name, token in lines if name == "decode_step"] == tokens
    assert lines[-1] == ["shutdown", None]


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "span exporter 'zipkin' is not installed"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1/b"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_server_does_not_start_with_invalid_export_settings(
    environment: dict[str, str], words: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "whence_server", "serve", "--model", "m"]
    result = subprocess.run(
        [*command, "--data-dir", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
