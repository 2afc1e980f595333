"""Everything that a server says to a collector, byte for byte: where content is, and where not."""

import asyncio
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from server_process import ServerProcess
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

PROMPT, SYSTEM, OUTPUT = "zanzibar quokka", "kookaburra", "wombat numbat"
CONTENT = [word.encode() for text in (PROMPT, SYSTEM, OUTPUT) for word in text.split()]
CAPTURE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
SIGNALS = {
    "/v1/traces": ExportTraceServiceRequest,
    "/v1/metrics": ExportMetricsServiceRequest,
    "/v1/logs": ExportLogsServiceRequest,
}


class Collector:
    """Takes every signal over HTTP, and keeps the bytes of each as they came."""

    def __init__(self) -> None:
        self.bodies: defaultdict[str, list[bytes]] = defaultdict(list)
        self.endpoint = ""

    async def take(self, request: web.Request) -> web.Response:
        self.bodies[request.path].append(await request.read())
        return web.Response(content_type="application/x-protobuf")

    def with_content(self) -> set[str]:
        """Return the paths of exported messages that hold content."""
        return {
            path
            for path, bodies in self.bodies.items()
            if any(word in body for body in bodies for word in CONTENT)
        }


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/{path:.*}", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0]
    made.endpoint = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


def requests() -> list[g.GenerateRequest]:
    """Return a completion, a conversation and two refused requests; the last refusal quotes."""
    twice = f'{{"{OUTPUT}": 1, "{OUTPUT}": 2}}'
    forced = g.Decoding(forced=g.Forced(text=OUTPUT))
    messages = [
        g.ChatMessage(role="system", content=SYSTEM),
        g.ChatMessage(role="user", content=PROMPT),
    ]
    return [
        g.GenerateRequest(prompt=PROMPT, decoding=forced),
        g.GenerateRequest(chat=g.ChatInput(messages=messages), decoding=forced),
        g.GenerateRequest(prompt=PROMPT, decoding=g.Decoding(stop=[""])),
        g.GenerateRequest(
            chat=g.ChatInput(messages=messages, template_arguments_json=twice), decoding=forced
        ),
    ]


async def use(target: str) -> list[str]:
    """Make the requests; return the status of each call."""
    codes = []
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for request in requests():
            call = stub.Generate(request)
            responses = []
            try:
                responses = [response async for response in call]
                assert responses[-1].event.finished.sequences[0].text == OUTPUT
            except grpc.aio.AioRpcError as error:
                quoted = OUTPUT in (error.details() or "")
                assert quoted is bool(request.chat.template_arguments_json)
            codes.append((await call.code()).name)
    return codes


@pytest.mark.parametrize(
    ("capture", "paths"),
    [
        (None, set()),
        ("SPAN_ONLY", {"/v1/traces"}),
        ("EVENT_ONLY", {"/v1/logs"}),
        ("SPAN_AND_EVENT", {"/v1/traces", "/v1/logs"}),
    ],
)
async def test_content_goes_only_where_it_is_wanted(
    tiny_model: Callable[..., Path],
    tmp_path: Path,
    collector: Collector,
    capture: str | None,
    paths: set[str],
) -> None:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
    }
    if capture is not None:
        environment[CAPTURE] = capture
    with ServerProcess(
        tiny_model("gpt2"),
        tmp_path,
        *("--metrics-listen", "127.0.0.1:0", "--log-level", "debug"),
        environment=environment,
    ) as server:
        assert await use(server.target) == ["OK", "OK", *["INVALID_ARGUMENT"] * 2]
        # A server that ends waits for its exports for some seconds only.
        await wait_until(
            lambda: collector.with_content() == paths and "/v1/traces" in collector.bodies
        )
        page = f"{server.find_metrics()}/metrics"
        shown = await asyncio.to_thread(lambda: urllib.request.urlopen(page).read())
        assert await asyncio.to_thread(server.terminate) == 0
    assert collector.with_content() == paths
    spans = b"".join(collector.bodies["/v1/traces"])
    assert (b"whence.token.text" in spans) is ("/v1/traces" in paths)
    said = {"metrics page": shown, "log": "".join(server.log).encode()}
    assert not [where for where, text in said.items() for word in CONTENT if word in text]
    # There was something to look through: each signal came, and is what its path says.
    wanted = {"/v1/traces", "/v1/metrics"} | ({"/v1/logs"} & paths)
    assert collector.bodies.keys() == wanted
    for path, bodies in collector.bodies.items():
        assert all(SIGNALS[path].FromString(body).ByteSize() for body in bodies)
