"""Jaeger takes a real server's spans through a real Collector, all by the files of deploy/."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import aiohttp
import calling_service
import pytest
from backend_process import TEST_TIMEOUT_S
from deploy_files import DEPLOY
from deployed import Jaeger
from jaeger_reading import FROM_FIELDS, SERVICE, Shown, expect, read_trace
from jaeger_scenario import MODEL, NUM_STEP_SPANS, REQUESTS, Seen, run_scenario
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from span_record import (
    CALL_ROWS,
    FINISHED_ROWS,
    STARTED_ROWS,
    STEP_ROWS,
    UNLIKELY_BELOW,
    assert_recorded,
    count_unlikely,
    read_fields,
)

from whence.summary import summarise_step
from whence_server.telemetry.export.resource import Envelope, make_service_resource

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)

CALL = "whence.v1.GenerationService/Generate"
KINDS = [*REQUESTS, "cancelled", "stopped", "resumed"]
MODEL_CALL = f"text_completion {MODEL}"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    with run_scenario(tmp_path_factory.mktemp("jaeger")) as made:
        yield made


async def ask(jaeger: Jaeger, path: str, **parameters: str) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{jaeger.page}{path}", params=parameters) as response,
    ):
        assert response.status == 200, await response.text()
        # /api/v3 says that its JSON is plain text.
        return dict(await response.json(content_type=None))


async def ask_trace(jaeger: Jaeger, trace_id: str) -> dict[str, Shown]:
    return read_trace(await ask(jaeger, f"/api/traces/{trace_id}"))


async def test_every_span_is_there_once_and_equals_the_journal(seen: Seen) -> None:
    for trace_id in seen.list_undisturbed():
        shown = await ask_trace(seen.jaeger, trace_id)
        own = {span_id: span for span_id, span in shown.items() if span.service == SERVICE}
        expected = seen.record.traces[trace_id]
        assert own == {span_id: expect(span) for span_id, span in expected.items()}
        assert own.keys() == shown.keys() or trace_id == seen.callers_trace_id


def list_tags(shown: dict[str, Shown], name: str) -> list[dict[str, object]]:
    """Return the attributes of the spans with a name, which may be followed by a token."""
    return [
        span.tags
        for span in shown.values()
        if span.name == name or span.name.startswith(f"{name} ")
    ]


def without_fields(tags: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in tags.items() if key not in FROM_FIELDS}


@pytest.mark.parametrize("kind", KINDS)
async def test_steps_say_what_the_journal_holds(seen: Seen, kind: str) -> None:
    shown = await ask_trace(seen.jaeger, seen.get_trace_id(kind))
    generation_id = seen.generations[kind]
    steps = {key: step for key, step in seen.record.steps.items() if key[0] == generation_id}
    assert steps
    told = {}
    for tags in list_tags(shown, "decode_step"):
        key = (generation_id, tags["whence.sequence.index"], tags["whence.step.index"])
        told[key] = without_fields(tags)
        assert told[key].pop("whence.generation.id") == generation_id
    assert len(told) == min(len(steps), NUM_STEP_SPANS)
    strategy = seen.record.started[generation_id].effective_decoding.WhichOneof("strategy")
    for key, tags in told.items():
        # The client shows the same line of the same step.
        line = summarise_step(steps[key], seen.names, str(strategy))
        assert tags.pop("whence.step.summary") == line
        assert_recorded(tags, read_fields(STEP_ROWS, steps[key]))


async def test_a_steps_span_is_named_after_its_token(seen: Seen) -> None:
    shown = await ask_trace(seen.jaeger, seen.get_trace_id("sampled"))
    named = {span.name for span in shown.values() if "whence.token.id" in span.tags}
    assert named == {
        f"decode_step {seen.names(step.token_id)}"
        for key, step in seen.record.steps.items()
        if key[0] == seen.generations["sampled"]
    }


@pytest.mark.parametrize("kind", KINDS)
async def test_the_model_call_says_what_the_journal_holds(seen: Seen, kind: str) -> None:
    shown = await ask_trace(seen.jaeger, seen.get_trace_id(kind))
    (tags,) = (without_fields(tags) for tags in list_tags(shown, MODEL_CALL))
    generation_id = seen.generations[kind]
    finished = seen.record.finished[generation_id]
    (output, *_), input_ = (tags.pop(f"gen_ai.{it}.messages") for it in ("output", "input"))
    started = seen.record.started[generation_id]
    assert input_[0]["parts"][0]["content"] == started.prompt
    assert output["parts"][0]["content"] == finished.sequences[0].text
    steps = [step for key, step in seen.record.steps.items() if key[0] == generation_id]
    first = min(step.timing.elapsed_ns for step in steps)
    assert str(tags.pop("whence.step.summary")).startswith(f"{len(steps):,} tokens, mean ")
    assert tags.pop("gen_ai.response.time_to_first_chunk", first / 1e9) == first / 1e9
    recorded = read_fields(STARTED_ROWS, started) | read_fields(FINISHED_ROWS, finished)
    assert_recorded(tags, recorded | count_unlikely(steps))


async def test_calls_say_what_the_journal_holds(seen: Seen) -> None:
    codes = Counter[object]()
    for trace_id in seen.list_undisturbed():
        for span_id, span in (await ask_trace(seen.jaeger, trace_id)).items():
            if span.tags["span.kind"] != "server":
                continue
            tags = without_fields(span.tags)
            codes[tags.pop("rpc.response.status_code")] += 1
            call = seen.record.calls[span_id]
            assert_recorded(tags, read_fields(CALL_ROWS, call))
            assert span.parent == call.parent_span_id
            assert span.start == call.start_time.ToNanoseconds() // 1_000
    # Two callers hung up; one request was refused.
    assert codes == {"OK": len(REQUESTS) + 3, "CANCELLED": 2, "INVALID_ARGUMENT": 1}


async def test_another_services_span_is_above_the_call(seen: Seen) -> None:
    shown = await ask_trace(seen.jaeger, seen.callers_trace_id)
    (root,) = (span for span in shown.values() if not span.parent)
    assert (root.service, root.name) == (calling_service.NAME, calling_service.SPAN)
    (call,) = (span for span in shown.values() if (span.service, span.name) == (SERVICE, CALL))
    # Between the two may be a span of the caller's own gRPC client.
    assert shown[call.parent].service == calling_service.NAME


async def test_a_failed_generation_is_an_error_with_its_reason(seen: Seen) -> None:
    shown = await ask_trace(seen.jaeger, seen.get_trace_id("failing"))
    (failed,) = (span for span in shown.values() if span.tags.get("error"))
    assert failed.name == MODEL_CALL
    failure = seen.record.finished[seen.generations["failing"]].failure
    assert failed.tags["otel.status_description"] == failure.message
    _, event = failed.events[-1]
    assert (event["event"], event["exception.type"]) == ("exception", failure.reason)


async def test_the_model_calls_events_say_who_stopped_it_and_who_came_back(seen: Seen) -> None:
    async def list_events(kind: str) -> dict[object, dict[str, object]]:
        shown = await ask_trace(seen.jaeger, seen.get_trace_id(kind))
        (events,) = (span.events for span in shown.values() if span.name == MODEL_CALL)
        return {event["event"]: event for _, event in events}

    stopped = (await list_events("stopped"))["whence.generation.cancelled"]
    assert stopped["whence.cancel.cause"] == "call"
    assert stopped["rpc.method"] == "whence.v1.GenerationService/CancelGeneration"
    resumed = await list_events("resumed")
    assert resumed["whence.generation.reader_left"]["rpc.response.status_code"] == "CANCELLED"
    joined = resumed["whence.generation.reader_joined"]
    assert joined["rpc.method"] == "whence.v1.GenerationService/ResumeGeneration"


def list_searches(seen: Seen) -> list[tuple[str, object]]:
    """Return the attributes that people search for, with a value of each."""
    sampled = seen.generations["sampled"]
    texts = Counter(step.text for step in seen.record.steps.values() if step.text)
    rarest = min(
        (step.text for key, step in seen.record.steps.items() if key[0] == sampled and step.text),
        key=lambda text: (texts[text], text),
    )
    return [
        ("whence.generation.id", sampled),
        ("whence.request.digest", seen.record.started[sampled].request_digest),
        ("whence.token.text", rarest),
        ("whence.generation.finish_reason", "failed"),
        ("gen_ai.response.finish_reasons", '["cancelled"]'),
        ("whence.decoding.strategy", "beam_search"),
        ("error.type", "NON_FINITE_LOGITS"),
        ("whence.generation.unlikely", "true"),
        ("whence.error.reason", "INVALID_REQUEST"),
    ]


async def test_a_search_finds_the_right_traces_and_no_others(seen: Seen) -> None:
    tags = {
        trace_id: await ask_trace(seen.jaeger, trace_id) for trace_id in seen.list_undisturbed()
    }
    for name, value in list_searches(seen):
        answer = await ask(
            seen.jaeger,
            "/api/traces",
            service=SERVICE,
            tags=json.dumps({name: value}),
            limit="100",
        )
        found = {trace["traceID"] for trace in answer["data"]}
        expected = {
            trace_id
            for trace_id, spans in tags.items()
            if any(as_text(span.tags.get(name)) == value for span in spans.values())
        }
        assert found == expected, name
        assert 0 < len(found) < len(tags), name


async def test_a_search_finds_generations_with_an_unlikely_token(seen: Seen) -> None:
    tags = json.dumps({"whence.generation.unlikely": "true"})
    answer = await ask(seen.jaeger, "/api/traces", service=SERVICE, tags=tags, limit="100")
    found = {trace["traceID"] for trace in answer["data"]}
    unlikely = {
        key[0] for key, step in seen.record.steps.items() if math.exp(step.logprob) < UNLIKELY_BELOW
    }
    for kind, generation_id in seen.generations.items():
        assert (seen.get_trace_id(kind) in found) == (generation_id in unlikely), kind
    assert 0 < len(unlikely & set(seen.generations.values())) < len(seen.generations)


def as_text(value: object) -> object:
    if isinstance(value, list):
        return json.dumps(value, separators=(",", ":"))
    return str(value).lower() if isinstance(value, bool) else value


async def test_the_operations_are_the_spans_names(seen: Seen) -> None:
    answer = await ask(seen.jaeger, "/api/v3/operations", service=SERVICE)
    shown = {(it["name"], it["spanKind"]) for it in answer["operations"]}
    kinds = {Span.SPAN_KIND_INTERNAL: "internal", Span.SPAN_KIND_SERVER: "server"}
    assert shown == {
        (span.name, kinds[span.kind])
        for trace_id in seen.list_undisturbed()
        for span in seen.record.traces[trace_id].values()
    }
    services = (await ask(seen.jaeger, "/api/services"))["data"]
    assert {SERVICE, calling_service.NAME} == set(services)


async def test_the_page_has_its_configuration(seen: Seen) -> None:
    async with aiohttp.ClientSession() as session, session.get(seen.jaeger.page) as response:
        page = await response.text()
    (written,) = re.findall(r"^ *JAEGER_CONFIG = (.*);$", page, re.MULTILINE)
    shipped = (DEPLOY / "jaeger" / "ui.json").read_text(encoding="utf-8")
    assert json.loads(written) == json.loads(shipped)


async def test_a_body_that_is_sent_twice_shows_once(seen: Seen) -> None:
    trace_id = seen.get_trace_id("four sequences")
    before = await ask_trace(seen.jaeger, trace_id)
    spans = seen.record.traces[trace_id].values()
    envelope = Envelope(make_service_resource(version("whence")), version("whence"))
    body = envelope.make_request([ScopeSpans(spans=[it]).SerializeToString() for it in spans])
    content = {"content-type": "application/x-protobuf"}
    # The Collector now sends to the other Jaeger, which has none of these spans yet.
    for _ in range(2):
        async with (
            aiohttp.ClientSession() as session,
            session.post(seen.collector.http, data=body, headers=content) as response,
        ):
            assert response.status == 200
    assert await ask_trace(seen.kept, trace_id) == before


async def test_nothing_is_missing_after_kills_of_the_collector_and_of_jaeger(seen: Seen) -> None:
    num_steps = 0
    for generation_id in seen.disturbed:
        trace_id = seen.record.started[generation_id].trace_id
        shown = await ask_trace(seen.kept, trace_id)
        expected = seen.record.traces[trace_id]
        assert shown == {span_id: expect(span) for span_id, span in expected.items()}
        num_steps += len(list_tags(shown, "decode_step"))
    assert num_steps == NUM_STEP_SPANS * len(seen.disturbed)
