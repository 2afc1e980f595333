"""Arize Phoenix takes a real server's spans, and understands them.

It is under the Elastic License 2.0, and stays outside: `make phoenix` gives it an environment of
its own, and this test talks to it over OTLP and REST.
"""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc
import pytest
from backend_process import TEST_TIMEOUT_S, phoenix, wait_for_answer
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from server_process import ServerProcess
from tiny_models import save_model_that_breaks

import whence
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, step_pb2, trace_pb2, trace_pb2_grpc

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)

NUM_TOKENS = 20
CALL = "whence.v1.GenerationService/Generate"


def request(num_tokens: int = NUM_TOKENS, num_sequences: int = 1) -> g.GenerateRequest:
    return g.GenerateRequest(
        prompt="The quick brown fox",
        decoding=g.Decoding(
            sample=g.Sample(seed=1, temperature=0.8, top_p=0.9),
            max_new_tokens=num_tokens,
            num_return_sequences=num_sequences,
            ignore_eos=True,
        ),
    )


@dataclass(frozen=True)
class Told:
    """A generation by whence's own record, and by what Phoenix has of it."""

    code: grpc.StatusCode
    started: g.GenerationStarted
    finished: g.GenerationFinished
    steps: list[step_pb2.Step]
    spans: list[dict[str, Any]]
    """Spans as Phoenix's REST API returns them."""

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]

    def only(self, name: str) -> dict[str, Any]:
        (span,) = self.named(name)
        return span


async def generated(
    target: str, wanted: g.GenerateRequest, *, cancel_after: int | None = None
) -> tuple[str, grpc.StatusCode]:
    """Generates; gives the generation's id and how the call ended."""
    generation_id, num_steps = "", 0
    async with grpc.aio.insecure_channel(target) as channel:
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(wanted)
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            async for response in call:
                generation_id = generation_id or response.event.started.generation_id
                num_steps += len(response.event.steps.steps)
                if cancel_after is not None and num_steps >= cancel_after:
                    call.cancel()
        return generation_id, await call.code()


async def told_of(
    target: str, page: str, generation_id: str, code: grpc.StatusCode, num_others: int = 0
) -> Told:
    """Wait until Phoenix has all spans of a generation."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = trace_pb2_grpc.TraceServiceStub(channel)
        wanted = trace_pb2.GetGenerationRequest(generation_id=generation_id)
        record = await stub.GetGeneration(wanted)
        while not record.HasField("finished"):
            record = await stub.GetGeneration(wanted)
        steps = trace_pb2.ListStepsRequest(generation_id=generation_id, page_size=1_000)
        listed = list((await stub.ListSteps(steps)).steps)
    num_sequences = len({step.sequence_index for step in listed})
    # The call, the model call, its queue and prefill; a span for each sequence and each step.
    num_spans = 4 + num_sequences + len(listed) + num_others
    async with aiohttp.ClientSession() as session:
        found = await wait_for_answer(
            session,
            lambda answer: len(answer["data"]) >= num_spans,
            "GET",
            f"{page}/v1/projects/default/spans",
            params={"trace_id": record.started.trace_id, "limit": "1000"},
        )
    assert found["next_cursor"] is None
    return Told(code, record.started, record.finished, listed, found["data"])


@dataclass(frozen=True)
class Seen:
    """Generations, and their project in Phoenix."""

    whole: Told
    failed: Told
    cancelled: Told
    below_users_span: Told
    users_trace_id: str
    users_span_id: str
    project: dict[str, Any]


def work(target: str, otlp: str) -> tuple[str, str, str]:
    """Generate below a user's span; return the generation's id and the span's ids."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(otlp, insecure=True)))
    with provider.get_tracer("program").start_as_current_span("work") as span:
        context = span.get_span_context()
        with whence.Client(target) as client:
            generation_id = client.generate("The quick", max_new_tokens=3).result().id
    provider.shutdown()
    trace_id = trace.format_trace_id(context.trace_id)
    return generation_id, trace_id, trace.format_span_id(context.span_id)


async def see(target: str, page: str, otlp: str) -> Seen:
    ended = [
        await generated(target, request(num_sequences=2)),
        await generated(target, request(num_tokens=100)),
        await generated(target, request(num_tokens=50), cancel_after=3),
    ]
    told = [await told_of(target, page, *one) for one in ended]
    users = await asyncio.to_thread(work, target, otlp)
    # The user's own span is in the trace as well.
    below = await told_of(target, page, users[0], grpc.StatusCode.OK, num_others=1)
    counts = "traceCount recordCount tokenCountPrompt tokenCountCompletion"
    query = {"query": f"{{ projects {{ edges {{ node {{ name {counts} }} }} }} }}"}
    async with aiohttp.ClientSession() as session:
        found = await wait_for_answer(session, bool, "POST", f"{page}/graphql", json=query)
    (project,) = [edge["node"] for edge in found["data"]["projects"]["edges"]]
    return Seen(*told, below, *users[1:], project)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """Phoenix and a server start at once: the first spans wait until Phoenix is up."""
    directory = tmp_path_factory.mktemp("phoenix")
    with phoenix(directory / "phoenix") as (page, endpoint):
        model = save_model_that_breaks(directory / "model")
        flags = ("--otlp-endpoint", endpoint, "--model-name", "tiny")
        with ServerProcess(model, directory / "data", *flags) as server:
            seen = asyncio.run(see(server.target, page, endpoint))
            assert server.terminate() == 0
            yield seen


@pytest.mark.parametrize("which", ["whole", "failed", "cancelled"])
def test_every_step_is_a_span_under_its_sequence_up_to_the_call(seen: Seen, which: str) -> None:
    told: Told = getattr(seen, which)
    ids = {span["context"]["span_id"]: span for span in told.spans}
    assert len(ids) == len(told.spans), "nothing is there twice"
    above = {span_id: ids.get(span["parent_id"], {}).get("name") for span_id, span in ids.items()}
    model_call = "text_completion tiny"
    parents = {(span["name"], above[span_id]) for span_id, span in ids.items()}
    assert parents == {
        (CALL, None),
        (model_call, CALL),
        ("queue", model_call),
        ("prefill", model_call),
        ("decode", model_call),
        ("decode_step", "decode"),
    }
    assert told.only(CALL)["parent_id"] is None
    assert told.only(CALL)["context"]["span_id"] == told.started.span_id
    spans = {}
    for span in told.named("decode_step"):
        attributes = span["attributes"]
        key = (attributes["whence.sequence.index"], attributes["whence.step.index"])
        decode = ids[span["parent_id"]]["attributes"]
        assert decode["whence.sequence.index"] == key[0]
        assert attributes["whence.candidates.token_ids"]
        spans[key] = (attributes["whence.token.id"], attributes["whence.token.logprob"])
    assert len(told.steps) > 2
    assert spans == {
        (step.sequence_index, step.index): (step.token_id, pytest.approx(step.logprob))
        for step in told.steps
    }


def test_a_users_span_is_the_root_without_further_code(seen: Seen) -> None:
    told = seen.below_users_span
    assert told.started.trace_id == seen.users_trace_id
    (above,) = told.named("work")
    assert above["context"]["span_id"] == seen.users_span_id
    assert told.only(CALL)["parent_id"] == seen.users_span_id


def test_phoenix_understands_the_model_call(seen: Seen) -> None:
    """Phoenix converts `gen_ai.*` into its own attributes, next to ours."""
    call = seen.whole.only("text_completion tiny")
    understood = call["attributes"]
    assert understood["llm.model_name"] == "tiny"
    assert understood["llm.system"] == "whence"
    assert understood["llm.token_count.prompt"] == seen.whole.finished.num_prompt_tokens
    assert understood["llm.token_count.completion"] == 2 * NUM_TOKENS
    assert understood["llm.finish_reason"] == ["length", "length"]
    assert json.loads(understood["llm.invocation_parameters"]) == {
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 50,  # transformers' default
        "max_tokens": NUM_TOKENS,
        "seed": 1,
        "n": 2,
        "stream": True,
        "response_format": {"type": "text"},
    }
    kinds = Counter(span["span_kind"] for span in seen.whole.spans)
    assert (call["span_kind"], kinds["LLM"]) == ("LLM", 1), "no other span is a model call"


def test_phoenix_adds_up_what_its_project_holds(seen: Seen) -> None:
    told = (seen.whole, seen.failed, seen.cancelled, seen.below_users_span)
    assert seen.project == {
        "name": "default",
        "traceCount": 4,
        "recordCount": sum(len(one.spans) for one in told),
        "tokenCountPrompt": sum(one.finished.num_prompt_tokens for one in told),
        "tokenCountCompletion": sum(one.finished.num_generated_tokens for one in told),
    }


def test_an_error_is_shown_on_its_span(seen: Seen) -> None:
    assert {span["status_code"] for span in seen.whole.spans} == {"UNSET"}
    failed = seen.failed
    assert failed.finished.finish_reason == g.FINISH_REASON_FAILED
    (wrong,) = [span for span in failed.spans if span["status_code"] == "ERROR"]
    assert wrong == failed.only("text_completion tiny")
    assert wrong["status_message"] == failed.finished.failure.message
    assert wrong["attributes"]["error.type"] == "NON_FINITE_LOGITS"
    assert "exception" in [event["name"] for event in wrong["events"]]
    # Its stream was opened and ended in order, and says itself how the generation ended.
    assert failed.only(CALL)["attributes"]["rpc.response.status_code"] == "OK"


def test_a_cancelled_generation_is_shown_and_no_error(seen: Seen) -> None:
    """CANCELLED is no error of the server in the conventions."""
    cancelled = seen.cancelled
    assert cancelled.code is grpc.StatusCode.CANCELLED
    assert {span["status_code"] for span in cancelled.spans} == {"UNSET"}
    assert cancelled.only(CALL)["attributes"]["rpc.response.status_code"] == "CANCELLED"
    assert cancelled.only("text_completion tiny")["attributes"]["llm.finish_reason"] == "cancelled"
