"""The user's current span is the server's parent, without a line of code."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from client_fake_server import Break, FakeServer
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Span, SpanContext, TraceFlags, TraceState

import whence

TRACER = TracerProvider().get_tracer("test")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[whence.Client]:
    with whence.Client(server.target) as connected:
        yield connected


def header(span: Span) -> str:
    of_span = span.get_span_context()
    ids = trace.format_trace_id(of_span.trace_id), trace.format_span_id(of_span.span_id)
    return f"00-{'-'.join(ids)}-{of_span.trace_flags:02x}"


def watched(client: whence.Client) -> object:
    with client.generations.watch() as watching:
        return next(watching)


SYNC_CALLS: list[Callable[[whence.Client], object]] = [
    lambda client: client.generate("The").result(),
    lambda client: client.models(),
    lambda client: client.vocabulary(),
    lambda client: list(client.generations.list()),
    lambda client: client.generations.get("g"),
    lambda client: list(client.generations.steps("g")),
    watched,
    lambda client: client.generations.delete("g"),
]


@pytest.mark.parametrize("call", SYNC_CALLS)
def test_every_call_has_the_current_span_as_its_parent(server, client, call):
    with TRACER.start_as_current_span("work") as span:
        call(client)
    assert server.script.metadata
    assert {sent["traceparent"] for sent in server.script.metadata} == {header(span)}


async def watched_async(client: whence.AsyncClient) -> object:
    async with client.generations.watch() as watching:
        return await anext(watching)


async def collected(items: object) -> list[object]:
    return [item async for item in items]


ASYNC_CALLS: list[Callable[[whence.AsyncClient], object]] = [
    lambda client: client.generate("The").result(),
    lambda client: client.models(),
    lambda client: client.vocabulary(),
    lambda client: collected(client.generations.list()),
    lambda client: client.generations.get("g"),
    lambda client: collected(client.generations.steps("g")),
    watched_async,
    lambda client: client.generations.delete("g"),
]


@pytest.mark.parametrize("call", ASYNC_CALLS)
async def test_every_asynchronous_call_has_it_too(server, call):
    async with whence.AsyncClient(server.target) as client:
        with TRACER.start_as_current_span("work") as span:
            await call(client)
    assert server.script.metadata
    assert {sent["traceparent"] for sent in server.script.metadata} == {header(span)}


def test_a_generation_that_resumes_keeps_its_parent(server, client):
    server.script.turns.append(Break(3))
    with TRACER.start_as_current_span("work") as span:
        generation = client.generate("The")
    with TRACER.start_as_current_span("reading"):
        generation.result()
    sent = [metadata["traceparent"] for metadata in server.script.metadata]
    assert sent == [header(span)] * 2


def test_tracestate_and_flags_are_propagated_and_baggage_is_not(server, client):
    remote = SpanContext(
        trace_id=1, span_id=2, is_remote=False, trace_flags=TraceFlags(1),
        trace_state=TraceState([("vendor", "x")]),
    )  # fmt: skip
    within = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    # Of the size that W3C allows, which is more than servers and proxies accept.
    token = context.attach(baggage.set_baggage("tenant", "a" * 8_000, within))
    try:
        for _ in range(20):
            client.models()
    finally:
        context.detach(token)
    unsampled = TracerProvider(sampler=ALWAYS_OFF).get_tracer("test")
    with unsampled.start_as_current_span("unwanted"):
        client.models()
    first, *_, second = server.script.metadata
    assert first["traceparent"] == f"00-{1:032x}-{2:016x}-01"
    assert first["tracestate"] == "vendor=x"
    assert "baggage" not in first
    assert int(second["traceparent"][-2:], 16) & TraceFlags.SAMPLED == 0


def test_metadata_of_the_user_takes_precedence(server):
    own = f"00-{5:032x}-{6:016x}-01"
    within = trace.set_span_in_context(
        trace.NonRecordingSpan(
            SpanContext(1, 2, False, TraceFlags(1), TraceState([("vendor", "x")]))
        )
    )
    token = context.attach(baggage.set_baggage("tenant", "a", within))
    try:
        with whence.Client(server.target, metadata={"baggage": "mine=1"}) as client:
            client.generate("The", metadata={"traceparent": own}).result()
    finally:
        context.detach(token)
    (sent,) = server.script.metadata
    assert sent["traceparent"] == own
    assert "tracestate" not in sent, "the state of another trace"
    assert sent["baggage"] == "mine=1"


def test_without_a_span_nothing_is_sent(server, client):
    client.models()
    (sent,) = server.script.metadata
    assert not sent.keys() & {"traceparent", "tracestate", "baggage"}


def test_a_program_without_opentelemetry_sends_no_trace_context(server):
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("opentelemetry"), name
sys.meta_path.insert(0, Absent())
import whence
with whence.Client({server.target!r}) as client:
    print(client.generate("The").result().text)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    (sent,) = server.script.metadata
    assert "traceparent" not in sent
