"""Errors, vocabularies and recorded generations of the client, from a server of a test."""

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from client_fake_server import (
    CODES,
    NUM_EVENTS,
    RESUMED,
    TOKEN_IDS,
    VOCABULARY,
    Break,
    FakeServer,
    Hold,
    info,
)
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2

import whence
from whence.errors import ERRORS
from whence.v1 import model_pb2, trace_pb2


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[whence.Client]:
    with whence.Client(server.target) as connected:
        yield connected


@pytest.mark.parametrize("code", CODES)
def test_every_status_has_its_error(server, client, code):
    details = (
        error_details_pb2.ErrorInfo(reason="WHY", domain="whence.v1", metadata={"key": "value"}),
        error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field="model", description="bad")
            ]
        ),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000)),
    )
    server.script.refusals.append(Break(0, code, details))
    with pytest.raises(whence.WhenceError) as raised:
        client.model()
    error = raised.value
    assert type(error) is ERRORS[whence.Code(code.value[0])]
    assert error.code == code.value[0]
    assert (error.reason, error.metadata) == ("WHY", {"key": "value"})
    assert error.violations == (whence.FieldViolation("model", "bad"),)
    assert error.retry_delay_s == 1.5
    assert error.message == f"scripted {code.name}"


async def test_the_asynchronous_client_raises_errors_by_status(server):
    full = Break(0, grpc.StatusCode.RESOURCE_EXHAUSTED, (info("QUEUE_FULL"),))
    server.script.turns.append(full)
    server.script.refusals.append(Break(0, grpc.StatusCode.NOT_FOUND))
    async with whence.AsyncClient(server.target) as client:
        with pytest.raises(whence.ResourceExhaustedError) as raised:
            await client.generate("The").result()
        assert raised.value.reason == "QUEUE_FULL"
        with pytest.raises(whence.NotFoundError):
            await client.cancel("unknown")


def test_candidates_get_their_text_from_one_vocabulary(server, client):
    tokens = [*client.generate("The"), *client.generate("The")]
    assert not server.script.requests(model_pb2.GetVocabularyRequest), "fetched only when needed"
    assert [candidate.text for candidate in tokens[0].candidates] == ["Hello", "<0xC3>"]
    assert tokens[-1].token_text == " 中"
    assert client.vocabulary().bytes_of(5) == b"\xc3"
    assert len(server.script.requests(model_pb2.GetVocabularyRequest)) == 1


def test_a_vocabulary_is_whole_over_any_break(server, client):
    server.script.turns.extend(Break(after, RESUMED[after]) for after in range(3))
    assert tuple(client.vocabulary()) == VOCABULARY
    assert len(server.script.requests(model_pb2.GetVocabularyRequest)) == 4
    server.script.turns.append(Break(1, grpc.StatusCode.NOT_FOUND, (info("MODEL_NOT_FOUND"),)))
    with whence.Client(server.target) as other, pytest.raises(whence.NotFoundError):
        other.vocabulary()


async def test_a_vocabulary_is_whole_over_any_break_async(server):
    server.script.turns.extend(Break(after, RESUMED[after]) for after in range(3))
    async with whence.AsyncClient(server.target) as client:
        assert tuple(await client.vocabulary()) == VOCABULARY


async def test_the_asynchronous_client_needs_a_fetched_vocabulary_for_texts(server):
    async with whence.AsyncClient(server.target) as client:
        token = await anext(client.generate("The"))
        with pytest.raises(whence.FailedPreconditionError, match=r"await client.vocabulary"):
            _ = token.candidates[0].text
        both = await asyncio.gather(client.vocabulary(), client.vocabulary("fake"))
        assert token.candidates[0].text == "Hello"
    assert both[0] is both[1]
    assert len(server.script.requests(model_pb2.GetVocabularyRequest)) == 1


def test_metadata_reaches_the_server(server):
    with whence.Client(server.target, metadata={"authorization": "x"}) as client:
        client.generate("The", metadata={"traceparent": "00-a-b-01"}).result()
        client.models()
    generate, models = server.script.metadata
    assert (generate["authorization"], generate["traceparent"]) == ("x", "00-a-b-01")
    assert models["authorization"] == "x"


def test_the_synchronous_client_reads_recorded_generations(server, client):
    listed = client.generations.list(labels={"k": "v"}, page_size=2)
    assert [summary.generation_id for summary in listed] == [
        "g00",
        "g01",
        "g10",
        "g11",
        "g20",
        "g21",
    ]
    requests = server.script.requests(trace_pb2.ListGenerationsRequest)
    assert [request.page_token for request in requests] == ["", "1", "2"]
    assert all(request.filter.labels == {"k": "v"} for request in requests)
    assert client.generations.get("g").finished.num_generated_tokens == len(TOKEN_IDS)
    recorded = list(client.generations.steps("g"))
    assert [token.token_id for token in recorded] == list(TOKEN_IDS)
    assert recorded[0].processors[0].name == "temperature"
    client.generations.delete("g")
    assert server.script.requests(trace_pb2.DeleteGenerationRequest)


async def test_the_asynchronous_client_reads_recorded_generations(server):
    async with whence.AsyncClient(server.target) as client:
        listed = [summary.generation_id async for summary in client.generations.list()]
        recorded = [token.token_id async for token in client.generations.steps("g")]
        assert (await client.generations.get("g")).summary.generation_id == "g"
        assert [model.model for model in await client.models()] == ["fake"]
        await client.generations.delete("g")
    assert len(listed) == 6
    assert recorded == list(TOKEN_IDS)


def test_a_watch_goes_on_from_its_last_position(server, client):
    server.script.turns.extend([Break(2), Break(0, RESUMED[5]), Break(1), Hold(NUM_EVENTS - 3)])
    with client.generations.watch(lifecycle_only=True) as watched:
        positions = [next(watched).position for _ in range(NUM_EVENTS)]
    assert positions == [str(offset) for offset in range(1, NUM_EVENTS + 1)]
    after = [r.after_position for r in server.script.requests(trace_pb2.WatchGenerationsRequest)]
    assert after == ["", "2", "2", "3"]


async def test_a_watch_goes_on_from_its_last_position_async(server):
    server.script.turns.extend([Break(2, RESUMED[0]), Hold(NUM_EVENTS - 2)])
    async with (
        whence.AsyncClient(server.target) as client,
        client.generations.watch() as watched,
    ):
        positions = [(await anext(watched)).position for _ in range(NUM_EVENTS)]
    assert positions == [str(offset) for offset in range(1, NUM_EVENTS + 1)]
