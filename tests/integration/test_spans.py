"""Spans on the wire, from a real server: whole, parented, and never lost."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from server_process import ServerProcess
from span_reading import assert_apart, mapping

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


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    await made.start()
    yield made
    await made.close()


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


async def test_a_generation_is_one_tree_under_the_callers_span(
    tiny_model: Callable[..., Path], tmp_path: Path, receiver: Receiver
) -> None:
    with ServerProcess(
        tiny_model("gpt2"), tmp_path, "--otlp-endpoint", receiver.endpoint
    ) as server:
        metadata = (
            ("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),
            ("tracestate", "vendor=value"),
        )
        started, steps = await generate(server.target, request(40, 2), metadata)
        assert (started.trace_id, started.parent_span_id) == (TRACE_ID, PARENT_ID)
        await wait_for_server_spans(receiver, 1)
        span = check_tree(receiver.spans, steps)
        once = [s.name for s in receiver.spans if s.name in {"queue", "prefill"}]
        assert sorted(once) == ["prefill", "queue"]
        assert span.trace_id.hex() == TRACE_ID
        assert span.parent_span_id.hex() == PARENT_ID
        assert span.span_id.hex() == started.span_id
        assert span.trace_state == "vendor=value"
        assert span.name == "whence.v1.GenerationService/Generate"
        assert attributes(span)["rpc.response.status_code"] == "OK"

        unsampled = (("traceparent", f"00-{TRACE_ID[::-1]}-{PARENT_ID}-00"),)
        await generate(server.target, request(5), unsampled)
        with pytest.raises(grpc.aio.AioRpcError):
            await generate(server.target, g.GenerateRequest())
        await wait_for_server_spans(receiver, 2)
        traces = {s.trace_id.hex() for s in receiver.spans}
        assert TRACE_ID[::-1] not in traces
        refused = [s for s in receiver.spans if is_server(s)][-1]
        found = attributes(refused)
        assert found["rpc.response.status_code"] == "INVALID_ARGUMENT"
        assert (found["whence.error.reason"], found["whence.error.field"]) == (
            "INVALID_REQUEST",
            "input",
        )
        assert found["whence.error.message"] == (
            "input: one of `prompt`, `chat` or `tokens` must be set"
        )


async def test_a_call_that_its_client_ends_has_its_code(
    tiny_model: Callable[..., Path], tmp_path: Path, receiver: Receiver
) -> None:
    flags = ("--otlp-endpoint", receiver.endpoint, "--step-spans", "off")
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, *flags) as server:
        async with grpc.aio.insecure_channel(server.target) as channel:
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
        wanted = {cancelled_id: "CANCELLED", expired_id: "DEADLINE_EXCEEDED"}
        codes: dict[str, object] = {}
        model_calls: dict[str, Span] = {}
        async with asyncio.timeout(60):
            while not wanted.keys() <= codes.keys() & model_calls.keys():
                await receiver.wait_for(receiver.num_spans + 1)
                model_calls = {
                    span.trace_id.hex(): span
                    for span in receiver.spans
                    if span.name.startswith("text_completion ")
                }
                codes = {
                    span.trace_id.hex(): attributes(span)["rpc.response.status_code"]
                    for span in receiver.spans
                    if is_server(span)
                }
    assert {trace_id: codes[trace_id] for trace_id in wanted} == wanted
    for trace_id, code_name in wanted.items():
        model_call = model_calls[trace_id]
        events = {event.name: mapping(event.attributes) for event in model_call.events}
        left = events["whence.generation.reader_left"]
        assert left["rpc.response.status_code"] == code_name
        assert left["whence.caller.span_id"] == model_call.parent_span_id.hex()
        assert events["whence.generation.cancelled"]["whence.cancel.cause"] == "no_reader"


async def test_calls_that_generate_nothing_make_no_span(
    tiny_model: Callable[..., Path], tmp_path: Path, receiver: Receiver
) -> None:
    flags = ("--otlp-endpoint", receiver.endpoint)
    with ServerProcess(tiny_model("gpt2"), tmp_path, *flags) as server:
        started, _ = await generate(server.target, request(3))
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
        await generate(server.target, request(3))
        await wait_for_server_spans(receiver, 2)
        assert server.terminate() == 0
    servers = {span.span_id: span for span in receiver.spans if is_server(span)}
    assert [span.name for span in servers.values()] == ["whence.v1.GenerationService/Generate"] * 2
    assert len({span.trace_id for span in receiver.spans}) == 2


async def test_a_trace_beyond_the_limit_of_step_spans_is_one_tree(
    tiny_model: Callable[..., Path], tmp_path: Path, receiver: Receiver
) -> None:
    flags = ("--otlp-endpoint", receiver.endpoint, "--step-spans", "5")
    with ServerProcess(tiny_model("gpt2"), tmp_path, *flags) as server:
        _, steps = await generate(server.target, request(40))
        await wait_for_server_spans(receiver, 1)
    (block,) = [s for s in receiver.spans if s.name == "decode_block"]
    found = attributes(block)
    assert (found["whence.block.first_index"], found["whence.block.last_index"]) == (5, 39)
    assert found["whence.block.logprob"] == pytest.approx(sum(s.logprob for s in steps[5:]))
    own = [s for s in receiver.spans if s.name == "decode_step"]
    assert len(own) == 5
    assert_apart([*own, block])


async def test_no_exported_byte_holds_content(
    tiny_model: Callable[..., Path], tmp_path: Path, receiver: Receiver
) -> None:
    with ServerProcess(
        tiny_model("gpt2"), tmp_path, "--otlp-endpoint", receiver.endpoint
    ) as server:
        baggage = (("baggage", "user=hidden"),)
        _, steps = await generate(server.target, request(40), baggage)
        await wait_for_server_spans(receiver, 1)
    text = "".join(s.text for s in steps)
    exported = b"".join(receiver.requests)
    assert b"hidden" not in exported
    assert b"hidden" not in b"".join(p.read_bytes() for p in tmp_path.rglob("journal.db*"))
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
