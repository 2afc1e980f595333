"""A real server's telemetry is what the registry declares, and Jaeger shows its steps as events."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from backend_process import ANSWER_TIMEOUT_S, TEST_TIMEOUT_S, wait_for_answer
from deployed import Collector, Jaeger
from journal_export import JournalExport
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from otlp_collector import Collected, collecting
from server_process import ServerProcess
from span_reading import attributes, named
from telemetry_journal import TRACE_ID, MemoryJournal, call, finished, started, step
from telemetry_registry import Held
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc
from whence.v1.step_pb2 import Candidates, Step
from whence_server.domain.entries import EntryKind
from whence_server.domain.otlp import OtlpSettings
from whence_server.domain.telemetry import StepForm
from whence_server.telemetry.export.otlp_grpc import EXPORT_METHOD, OtlpGrpcSink
from whence_server.telemetry.spans.encoder import SpanEncoder

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)

NUM_TOKENS = 200
SAMPLE = g.Sample(seed=1, temperature=0.8, top_p=0.9)
EVENTS_KEY = "gen_ai.token.generated"


def make_request(num_tokens: int, **fields: Any) -> g.GenerateRequest:
    trace, prompt = fields.pop("trace", None), fields.pop("prompt", "The quick brown fox")
    return g.GenerateRequest(
        prompt=prompt,
        decoding=g.Decoding(
            max_new_tokens=num_tokens, ignore_eos="constraint" not in fields, **fields
        ),
        trace=trace,
        labels={"team": "search", "gen_ai.conversation.id": "c-17"},
    )


REQUESTS = [
    make_request(NUM_TOKENS, sample=SAMPLE),
    make_request(
        8,
        sample=SAMPLE,
        num_return_sequences=2,
        stop=["\n\n\n"],
        trace=g.TraceOptions(detail=g.TRACE_DETAIL_INTERNALS),
    ),
    make_request(NUM_TOKENS + 40, sample=SAMPLE),
    make_request(4, greedy=g.Greedy()),
    # Cut before the language's end.
    make_request(2, greedy=g.Greedy(), constraint=g.Constraint(regex="[a-z]{40}")),
    make_request(8, beam_search=g.BeamSearch(num_beams=3), num_return_sequences=2),
]


@dataclass(frozen=True)
class Sent:
    """Telemetry of a server, and the steps on its record by generation id."""

    collected: Collected
    steps: dict[str, list[Step]]


@pytest.fixture(scope="module")
def sent(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sent]:
    with collecting() as (collected, endpoint):
        flags = (
            *("--step-form", "both", "--step-spans", str(NUM_TOKENS), "--token-arrays", "8"),
            *("--listen", "127.0.0.1:0"),
        )
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
            "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_AND_EVENT",
        }
        directory = tmp_path_factory.mktemp("sent")
        with ServerProcess(
            tiny_model("gpt2"), directory, *flags, environment=environment
        ) as server:
            with grpc.insecure_channel(server.target) as channel:
                steps = dict(generate(channel, request) for request in REQUESTS)
                fork(channel, next(iter(steps)))
                refuse(channel)
            # A server that ends waits for its exports for some seconds only.
            asyncio.run(wait_until(lambda: count_calls(collected) == len(REQUESTS) + 2))
            assert server.terminate() == 0
        assert collected.spans, "".join(server.log)
        yield Sent(collected, steps)


def count_calls(collected: Collected) -> int:
    return sum(span.kind == Span.SPAN_KIND_SERVER for span in collected.spans)


def generate(channel: grpc.Channel, request: g.GenerateRequest) -> tuple[str, list[Step]]:
    """Generate; return the generation's id and its recorded steps."""
    (first, *_) = list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request))
    generation_id = first.event.started.generation_id
    page = trace_pb2_grpc.TraceServiceStub(channel).ListSteps(
        trace_pb2.ListStepsRequest(generation_id=generation_id, page_size=5_000)
    )
    return generation_id, list(page.steps)


def fork(channel: grpc.Channel, generation_id: str) -> None:
    request = g.ForkGenerationRequest(
        parent_generation_id=generation_id, step=3, decoding=g.Decoding(max_new_tokens=6)
    )
    list(generation_pb2_grpc.GenerationServiceStub(channel).ForkGeneration(request))


def refuse(channel: grpc.Channel) -> None:
    wrong = make_request(4, sample=g.Sample(temperature=-1.0))
    with pytest.raises(grpc.RpcError):
        list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(wrong))


RARE = {
    # Of generations of a model whose training is on record.
    *(f"whence.training.{it}" for it in ("run_id", "trace_id", "span_id", "step.number")),
    # Of generations that fail, and of models that cannot give everything.
    *("error.type", "exception.type", "whence.unavailable"),
    "whence.span.shortened_attributes",  # of spans above a megabyte
    # Of requests with an adapter, of chats with tools, and of models that are trained.
    *(f"whence.adapter.{it}" for it in ("name", "digest", "weights_digest")),
    *("gen_ai.tool.definitions", "whence.source.sink_share"),
    # Of upstreams alone.
    *(f"whence.upstream.{it}" for it in ("kind", "version", "url", "model", "fingerprint")),
}
"""Attributes of spans that this run has no reason for; the unit tests' journal has them."""


def test_everything_that_a_real_server_sends_is_declared(sent: Sent) -> None:
    held = Held()
    held.add_spans(sent.collected.spans)
    held.add_records(sent.collected.records)
    held.add_metrics(sent.collected.metrics)
    held.add_resources(sent.collected.resources)
    assert sorted(held.complaints) == []
    serving = {"server", "generation", "queue", "prefill", "beam_round"}
    serving |= {"decode", "decode_step", "decode_block"}
    signals = {f"span {it}" for it in serving} | {
        "event gen_ai.token.scheduled",
        "event gen_ai.token.generated",
    }
    unsent = {it for it in held.list_unsent() if " ".join(it.split(" ")[:2]) in signals}
    assert {it.rpartition(" ")[2] for it in unsent} <= RARE


# ---- in Jaeger, through a Collector ----


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Collector, Jaeger]]:
    directory = tmp_path_factory.mktemp("backends")
    jaeger = Jaeger(directory / "jaeger")
    collector = Collector(directory / "collector", jaeger)
    jaeger.start()
    collector.start()
    try:
        yield collector, jaeger
    finally:
        collector.kill()
        jaeger.kill()


async def read_decodes(jaeger: Jaeger, trace_id: str, num: int) -> list[dict[str, Any]]:
    """Wait until Jaeger has a number of a trace's `decode` spans, and return them by start."""

    def find(answer: dict[str, Any]) -> list[dict[str, Any]]:
        spans = [it for trace in answer.get("data") or () for it in trace["spans"]]
        return [it for it in spans if it["operationName"] == "decode"]

    async with aiohttp.ClientSession() as session:
        url = f"{jaeger.page}/api/traces/{trace_id}"
        answer = await wait_for_answer(session, lambda it: len(find(it)) >= num, "GET", url)
    return sorted(find(answer), key=lambda span: span["startTime"])


def read_events(decodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fields of the events of tokens, in the order in which Jaeger returns them."""
    logs = [
        {field["key"]: field["value"] for field in log["fields"]}
        for span in decodes
        for log in span["logs"]
    ]
    return [fields for fields in logs if fields["event"] == EVENTS_KEY]


async def deliver(collector: Collector, requests: list[ExportTraceServiceRequest]) -> None:
    """Send requests to a Collector, each until it is accepted: Jaeger may still be starting."""
    async with grpc.aio.insecure_channel(collector.otlp) as channel:
        export = channel.unary_unary(EXPORT_METHOD)
        for request in requests:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await deliver_one(export, request.SerializeToString())


async def deliver_one(export: Any, request: bytes) -> None:
    while True:
        try:
            await export(request, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def test_jaeger_lists_a_generations_tokens_in_order_with_the_journals_candidates(
    sent: Sent, backends: tuple[Collector, Jaeger]
) -> None:
    collector, jaeger = backends
    await deliver(collector, sent.collected.traces)
    generation_id, steps = next(
        (key, steps) for key, steps in sent.steps.items() if len(steps) == NUM_TOKENS
    )
    decodes = [
        span
        for span in named(sent.collected.spans, "decode")
        if attributes(span)["whence.generation.id"] == generation_id
    ]
    assert [len(span.events) for span in decodes] == [NUM_TOKENS] * 2, "two events for each token"
    shown = read_events(await read_decodes(jaeger, decodes[0].trace_id.hex(), 2))
    assert [it["gen_ai.iteration.total_tokens"] for it in shown] == [*range(1, NUM_TOKENS + 1)]
    for fields, one in zip(shown, steps, strict=True):
        raw = dict(zip(one.candidates.token_ids, one.candidates.logprobs, strict=True))
        others = [token_id for token_id in raw if token_id != one.token_id]
        ids = json.loads(fields["gen_ai.response.candidate.token_ids"])
        assert ids == [one.token_id, *others]
        logprobs = json.loads(fields["gen_ai.response.candidate.logprobs"])
        assert logprobs == pytest.approx([one.logprob, *map(raw.__getitem__, others)])
        texts = json.loads(fields["gen_ai.response.candidate.decoded_tokens"])
        assert len(texts) == len(ids)
        assert fields["whence.step.summary"]


NUM_MANY = 10_000


async def test_a_sequence_of_ten_thousand_tokens_arrives_whole(
    backends: tuple[Collector, Jaeger],
) -> None:
    collector, jaeger = backends
    journal = MemoryJournal()
    trace_id = TRACE_ID[::-1]
    journal.append("g", EntryKind.STARTED, started("g", trace_id=trace_id))
    candidates = Candidates(
        token_ids=range(40_000, 40_008), logprobs=[-1.1] * 8, sampling_logprobs=[-1.2] * 8
    )
    for index in range(NUM_MANY):
        journal.append("g", EntryKind.STEP, step(index, candidates=candidates))
    journal.append("g", EntryKind.FINISHED, finished(NUM_MANY))
    journal.append("g", EntryKind.CALL, call("g", NUM_MANY, trace_id=trace_id))
    encoder = SpanEncoder(journal, None, step_form=StepForm.EVENTS)
    sink = OtlpGrpcSink(OtlpSettings(endpoint=f"http://{collector.otlp}"))
    export = JournalExport(journal, sink, encoder=encoder, max_batch_spans=512)
    export.start()
    try:
        assert await export.flush(120)
    finally:
        await export.close()
    decodes = await read_decodes(jaeger, trace_id, NUM_MANY // 500)
    shown = [it["gen_ai.iteration.total_tokens"] for it in read_events(decodes)]
    assert sorted(shown) == [*range(1, NUM_MANY + 1)]
