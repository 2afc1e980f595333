"""Spans on the wire, from a real server: whole, parented, and never lost."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from server_process import ServerProcess
from span_reading import assert_apart, mapping
from telemetry_registry import Held

from whence.v1 import generation_pb2 as g
from whence.v1 import (
    generation_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    step_pb2,
    trace_pb2,
    trace_pb2_grpc,
)
from whence_server.demo.receiver import Drop, Receiver

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT_ID = "00f067aa0ba902b7"

shared = pytest.mark.asyncio(loop_scope="module")
"""Mark of tests that share a server, whose receiver runs in one event loop."""


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A collector, whose spans are compared with the registry in the end."""
    made = Receiver()
    await made.start()
    yield made
    await made.close()
    assert_declared(made.spans)


def assert_declared(spans: list[Span]) -> None:
    held = Held()
    held.add_spans(spans)
    assert sorted(held.complaints) == []


@dataclass(frozen=True)
class Exporting:
    """A server, and the receiver of its spans. Each test looks at the traces of its own calls."""

    server: ServerProcess
    receiver: Receiver
    data_dir: Path

    async def wait_for_call(self, trace_id: str, *, also: str = "") -> list[Span]:
        """Wait until a call's own span is there, as its last; return its trace's spans.

        The generation of a call that its client ended may end later: `also` begins the name of
        a span to wait for.
        """
        async with asyncio.timeout(60):
            while True:
                spans = [span for span in self.receiver.spans if span.trace_id.hex() == trace_id]
                names = [span.name for span in spans if not is_server(span)]
                is_there = not also or any(name.startswith(also) for name in names)
                if is_there and any(map(is_server, spans)):
                    return spans
                await self.receiver.wait_for(self.receiver.num_spans + 1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def exporting(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Exporting]:
    """A server with the default number of step spans."""
    async with run_exporting(tiny_model("gpt2"), tmp_path_factory.mktemp("exporting")) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sparing(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Exporting]:
    """A server with five step spans for each generation."""
    directory, model = tmp_path_factory.mktemp("sparing"), tiny_model("gpt2-long")
    async with run_exporting(model, directory, "--step-spans", "5") as made:
        yield made


@contextlib.asynccontextmanager
async def run_exporting(model: Path, directory: Path, *flags: str) -> AsyncIterator[Exporting]:
    receiver = Receiver()
    await receiver.start()
    flags = ("--otlp-endpoint", receiver.endpoint, *flags)
    try:
        with ServerProcess(model, directory, *flags) as server:
            yield Exporting(server, receiver, directory)
        assert_declared(receiver.spans)
    finally:
        await receiver.close()


def request(num_tokens: int, num_sequences: int = 1) -> g.GenerateRequest:
    return g.GenerateRequest(
        prompt="The quick brown fox",
        decoding=g.Decoding(
            sample=g.Sample(seed=1),
            max_new_tokens=num_tokens,
            num_return_sequences=num_sequences,
            ignore_eos=True,
        ),
        labels={"tenant": "a"},
    )


async def generate(
    target: str, wanted: g.GenerateRequest, metadata: tuple[tuple[str, str], ...] = ()
) -> tuple[g.GenerationStarted, list[step_pb2.Step]]:
    steps: list[step_pb2.Step] = []
    started = g.GenerationStarted()
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        async for response in stub.Generate(wanted, metadata=metadata):
            if response.event.HasField("started"):
                started = response.event.started
            steps += response.event.steps.steps
    return started, steps


async def cancel_soon(target: str) -> tuple[g.GenerationStarted, list[step_pb2.Step]]:
    """Start a generation, cancel it after its first steps, and read it to its end."""
    steps: list[step_pb2.Step] = []
    started = g.GenerationStarted()
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        async for response in stub.Generate(request(8_000)):
            if response.event.HasField("started"):
                started = response.event.started
            if response.event.HasField("steps") and not steps:
                asked = g.CancelGenerationRequest(generation_id=started.generation_id)
                await stub.CancelGeneration(asked)
            steps += response.event.steps.steps
    return started, steps


async def wait_for_server_spans(receiver: Receiver, num_calls: int) -> None:
    async with asyncio.timeout(60):
        while len({s.span_id for s in receiver.spans if is_server(s)}) < num_calls:
            await receiver.wait_for(receiver.num_spans + 1)


def is_server(span: Span) -> bool:
    return span.kind == Span.SPAN_KIND_SERVER


def attributes(span: Span) -> dict[str, object]:
    return {
        a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value")
        for a in span.attributes
    }


def check_tree(spans: list[Span], steps: list[step_pb2.Step]) -> Span:
    """Assert one span for each step, below its sequence, the GenAI span and the SERVER span."""
    by_id = {span.span_id: span for span in spans}
    (server,) = [span for span in by_id.values() if is_server(span)]
    by_name = defaultdict(list)
    for span in by_id.values():
        by_name[span.name].append(span)
        if span is not server:
            parent = by_id[span.parent_span_id]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
    (model_call,) = [s for s in by_id.values() if s.name.startswith("text_completion ")]
    assert model_call.parent_span_id == server.span_id
    assert {s.parent_span_id for s in by_name["decode"]} == {model_call.span_id}
    decodes = {
        attributes(span)["whence.sequence.index"]: span.span_id for span in by_name["decode"]
    }
    assert decodes.keys() == {s.sequence_index for s in steps}
    phases = by_name["queue"] + by_name["prefill"]
    assert {s.parent_span_id for s in phases} <= {model_call.span_id}
    for decode in by_name["decode"]:
        assert_apart([*phases, decode])
    for decode in by_name["decode"]:
        assert_apart([s for s in by_name["decode_step"] if s.parent_span_id == decode.span_id])
    told = {}
    for span in by_name["decode_step"]:
        values = attributes(span)
        key = (values["whence.sequence.index"], values["whence.step.index"])
        assert span.parent_span_id == decodes[key[0]]
        told[key] = (values["whence.token.id"], values["whence.token.logprob"])
    assert told == {
        (s.sequence_index, s.index): (s.token_id, pytest.approx(s.logprob)) for s in steps
    }
    return server


@shared
async def test_a_generation_is_one_tree_under_the_callers_span(exporting: Exporting) -> None:
    target = exporting.server.target
    metadata = (
        ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),
        ("tracestate", "vendor=value"),
    )
    started, steps = await generate(target, request(40, 2), metadata)
    assert (started.trace_id, started.parent_span_id) == (TRACE_ID, PARENT_ID)
    spans = await exporting.wait_for_call(TRACE_ID)
    span = check_tree(spans, steps)
    once = [s.name for s in spans if s.name in {"queue", "prefill"}]
    assert sorted(once) == ["prefill", "queue"]
    assert span.trace_id.hex() == TRACE_ID
    assert span.parent_span_id.hex() == PARENT_ID
    assert span.span_id.hex() == started.span_id
    assert span.trace_state == "vendor=value"
    assert span.name == "whence.v1.GenerationService/Generate"
    assert attributes(span)["rpc.response.status_code"] == "OK"


@shared
async def test_an_unsampled_call_makes_no_span_and_a_refused_one_says_so(
    exporting: Exporting,
) -> None:
    unsampled_id, refused_id = "a" * 32, "b" * 32
    unsampled = (("traceparent", f"00-{unsampled_id}-{PARENT_ID}-00"),)
    await generate(exporting.server.target, request(5), unsampled)
    sampled = (("traceparent", f"00-{refused_id}-{PARENT_ID}-01"),)
    with pytest.raises(grpc.aio.AioRpcError):
        await generate(exporting.server.target, g.GenerateRequest(), sampled)
    (refused,) = await exporting.wait_for_call(refused_id)
    found = attributes(refused)
    assert found["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert (found["whence.error.reason"], found["whence.error.field"]) == (
        "INVALID_REQUEST",
        "input",
    )
    assert found["whence.error.message"] == (
        "input: one of `prompt`, `chat` or `tokens` must be set"
    )
    # Spans go out in order: the unsampled call, which came before, made none.
    assert unsampled_id not in {span.trace_id.hex() for span in exporting.receiver.spans}


@shared
async def test_a_call_that_its_client_ends_has_its_code(sparing: Exporting) -> None:
    async with grpc.aio.insecure_channel(sparing.server.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        cancelled_id = ""
        cancelled = stub.Generate(request(2_000))
        async for response in cancelled:
            cancelled_id = response.event.started.trace_id or cancelled_id
            if response.event.HasField("steps"):
                cancelled.cancel()
                break
        expired_id, code, timeout_s = "", grpc.StatusCode.OK, 0.5
        while not (expired_id and code is grpc.StatusCode.DEADLINE_EXCEEDED):
            expired_id = ""
            expired = stub.Generate(request(2_000, 8), timeout=timeout_s)
            with contextlib.suppress(grpc.aio.AioRpcError):
                async for response in expired:
                    expired_id = response.event.started.trace_id or expired_id
            code = await expired.code()
            if not expired_id:  # the call had ended before it came to the server
                timeout_s *= 2
    for trace_id, wanted in ((cancelled_id, "CANCELLED"), (expired_id, "DEADLINE_EXCEEDED")):
        spans = await sparing.wait_for_call(trace_id, also="text_completion ")
        (call,) = filter(is_server, spans)
        assert attributes(call)["rpc.response.status_code"] == wanted
        (model_call,) = (span for span in spans if span.name.startswith("text_completion "))
        events = {event.name: mapping(event.attributes) for event in model_call.events}
        left = events["whence.generation.reader_left"]
        assert left["rpc.response.status_code"] == wanted
        assert left["whence.caller.span_id"] == model_call.parent_span_id.hex()
        assert events["whence.generation.cancelled"]["whence.cancel.cause"] == "no_reader"


@shared
async def test_calls_that_generate_nothing_make_no_span(exporting: Exporting) -> None:
    server, receiver = exporting.server, exporting.receiver
    started, _ = await generate(server.target, request(3))
    await exporting.wait_for_call(started.trace_id)
    num_before = receiver.num_spans
    async with grpc.aio.insecure_channel(server.target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest())
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        assert [answer async for answer in reflection.ServerReflectionInfo(iter([asked]))]
        await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())
        traces = trace_pb2_grpc.TraceServiceStub(channel)
        await traces.ListGenerations(trace_pb2.ListGenerationsRequest())
        await traces.GetGeneration(
            trace_pb2.GetGenerationRequest(generation_id=started.generation_id)
        )
    # Spans go out in order: none of the calls between made one.
    later, _ = await generate(server.target, request(3))
    await exporting.wait_for_call(later.trace_id)
    assert {span.trace_id.hex() for span in receiver.spans[num_before:]} == {later.trace_id}


@shared
async def test_a_trace_beyond_the_limit_of_step_spans_is_one_tree(sparing: Exporting) -> None:
    started, steps = await generate(sparing.server.target, request(40))
    spans = await sparing.wait_for_call(started.trace_id)
    (block,) = [s for s in spans if s.name == "decode_block"]
    found = attributes(block)
    assert (found["whence.block.first_index"], found["whence.block.last_index"]) == (5, 39)
    assert found["whence.block.logprob"] == pytest.approx(sum(s.logprob for s in steps[5:]))
    own = [s for s in spans if s.name == "decode_step"]
    assert len(own) == 5
    assert_apart([*own, block])


@shared
async def test_no_exported_byte_holds_content(exporting: Exporting) -> None:
    baggage = (("baggage", "user=hidden"),)
    started, steps = await generate(exporting.server.target, request(40), baggage)
    await exporting.wait_for_call(started.trace_id)
    text = "".join(s.text for s in steps)
    exported = b"".join(exporting.receiver.requests)
    journal = exporting.data_dir.rglob("journal.db*")
    assert b"hidden" not in exported
    assert b"hidden" not in b"".join(p.read_bytes() for p in journal)
    assert b"quick" not in exported
    assert b"whence.token.id" in exported
    assert b"whence.token.text" not in exported
    assert text[:12].encode() not in exported


async def test_nothing_is_lost_when_everything_fails(
    tiny_model: Callable[..., Path], tmp_path: Path, receiver: Receiver
) -> None:
    """The collector is unreachable and dies in a batch, and the server is killed."""
    flags = ("--otlp-endpoint", receiver.endpoint, "--step-spans", "all")
    model = tiny_model("gpt2-long")
    all_steps: dict[str, list[step_pb2.Step]] = {}

    async def run(target: str, num_tokens: int) -> None:
        started, steps = await generate(target, request(num_tokens))
        all_steps[started.trace_id] = steps

    with ServerProcess(model, tmp_path, *flags) as first:
        await run(first.target, 300)
        await wait_for_server_spans(receiver, 1)
        await receiver.stop()
        cancelled, steps = await cancel_soon(first.target)
        all_steps[cancelled.trace_id] = steps
        await asyncio.gather(*(run(first.target, 400) for _ in range(4)))
        interrupted = asyncio.create_task(generate(first.target, request(8_000)))
        # Kill it in the middle of that one: wait until it is on record as running.
        async with grpc.aio.insecure_channel(first.target) as channel:
            watch = trace_pb2_grpc.TraceServiceStub(channel).WatchGenerations(
                trace_pb2.WatchGenerationsRequest()
            )
            async for update in watch:
                if update.event.HasField("steps"):
                    running_id = update.generation_id
                    break
            watch.cancel()
        first.kill()
        with pytest.raises(grpc.aio.AioRpcError):
            await interrupted
    receiver.answers.extend([Drop(), Drop()])
    await receiver.start()
    with ServerProcess(model, tmp_path, *flags) as second:
        await run(second.target, 200)
        async with grpc.aio.insecure_channel(second.target) as channel:
            stub = trace_pb2_grpc.TraceServiceStub(channel)
            found = await stub.GetGeneration(
                trace_pb2.GetGenerationRequest(generation_id=running_id)
            )
            page = await stub.ListSteps(
                trace_pb2.ListStepsRequest(generation_id=running_id, page_size=5_000)
            )
        all_steps[found.started.trace_id] = list(page.steps)
        await wait_for_server_spans(receiver, len(all_steps))
        assert second.terminate() == 0
    by_trace: defaultdict[str, list[Span]] = defaultdict(list)
    for span in receiver.spans:
        by_trace[span.trace_id.hex()].append(span)
    assert by_trace.keys() == all_steps.keys()
    for trace_id, steps in all_steps.items():
        check_tree(by_trace[trace_id], steps)
    versions: defaultdict[bytes, set[bytes]] = defaultdict(set)
    for span in receiver.spans:
        versions[span.span_id].add(span.SerializeToString(deterministic=True))
    assert len(receiver.spans) > len(versions), "nothing was sent twice: the test shows too little"
    assert all(len(same) == 1 for same in versions.values())
    events = [e.name for span in by_trace[cancelled.trace_id] for e in span.events]
    assert len(events) > 2, "the cancelled generation was sent once: the test shows too little"
    assert set(events) == {"whence.generation.first_token", "whence.generation.cancelled"}
