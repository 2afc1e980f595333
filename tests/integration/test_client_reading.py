"""Reads with a time limit: one that is given up costs nothing and loses nothing."""

import asyncio
import gc
import json
import re
import threading
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import grpc
import pytest
from client_fake_server import (
    NUM_EVENTS,
    TOKEN_IDS,
    Break,
    FakeServer,
    Hold,
    Pause,
    batched,
    journal,
    steps,
)
from google.rpc import error_details_pb2
from waiting import wait_until

import whence
from whence.following import MOST_AHEAD
from whence.resume import TrainingRunStream, WatchStream
from whence.v1 import generation_pb2 as pb


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[whence.Client]:
    with whence.Client(server.target) as connected:
        yield connected


def give_up(following, *, times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(TimeoutError):
            following.read(timeout_s=0.02)


async def give_up_async(following, *, times: int = 3) -> None:
    for _ in range(times):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(following), 0.02)


@pytest.mark.parametrize("after", range(1, NUM_EVENTS))
def test_a_generation_continues_after_reads_that_were_given_up(server, client, after):
    pause = Pause(after)
    server.script.turns.append(pause)
    with client.generate("The") as generation:
        tokens = [generation.read(timeout_s=20) for _ in range(after - 1)]
        give_up(generation)
        pause.go.set()
        while (token := generation.read(timeout_s=20)) is not None:
            tokens.append(token)
        assert (generation.read(timeout_s=0), next(generation, None)) == (None, None)
    assert [token.token_id for token in tokens] == list(TOKEN_IDS)
    assert len(server.script.calls) == 1, "the stream was neither broken nor resumed"


@pytest.mark.parametrize("after", range(1, NUM_EVENTS))
async def test_a_generation_continues_after_cancelled_reads(server, after):
    pause = Pause(after)
    server.script.turns.append(pause)
    async with (
        whence.AsyncClient(server.target) as client,
        client.generate("The") as generation,
    ):
        tokens = [await anext(generation) for _ in range(after - 1)]
        await give_up_async(generation)
        pause.go.set()
        tokens += [token async for token in generation]
    assert [token.token_id for token in tokens] == list(TOKEN_IDS)
    assert len(server.script.calls) == 1, "the stream was neither broken nor resumed"


async def test_the_events_of_a_generation_continue_after_cancelled_reads(server):
    pause = Pause(3)
    server.script.turns.append(pause)
    async with (
        whence.AsyncClient(server.target) as client,
        client.generate("The") as generation,
    ):
        events = generation.events()
        offsets = [(await anext(events)).first_offset for _ in range(3)]
        await give_up_async(events)
        pause.go.set()
        offsets += [event.first_offset async for event in events]
    assert offsets == list(range(1, NUM_EVENTS + 1))


STREAMS = {
    "generations": (lambda client: client.generations.watch(), lambda item: int(item.position)),
    "a training": (lambda client: client.training_runs.watch(), lambda item: item.last_position),
    "an emergence": (
        lambda client: client.training_runs.trace_emergence("r", prompt="", continuation="x"),
        lambda item: item.point.step,
    ),
    "a document": (
        lambda client: client.training_runs.read_document("r", index=0),
        lambda octets: octets[0],
    ),
}


@pytest.mark.parametrize(("start", "position"), STREAMS.values(), ids=STREAMS)
def test_a_stream_loses_nothing_between_two_reads(server, client, start, position):
    pause = Pause(2)
    server.script.turns.append(pause)
    with start(client) as reading:
        positions = [position(reading.read(timeout_s=20)) for _ in range(2)]
        give_up(reading)
        pause.go.set()
        positions += [position(next(reading)) for _ in range(2, NUM_EVENTS)]
    assert positions == list(range(1, NUM_EVENTS + 1))
    assert len(server.script.calls) == 1


@pytest.mark.parametrize(("start", "position"), STREAMS.values(), ids=STREAMS)
async def test_a_stream_loses_nothing_between_two_reads_async(server, start, position):
    pause = Pause(2)
    server.script.turns.append(pause)
    async with whence.AsyncClient(server.target) as client, start(client) as reading:
        positions = [position(await anext(reading)) for _ in range(2)]
        await give_up_async(reading)
        pause.go.set()
        positions += [position(await anext(reading)) for _ in range(2, NUM_EVENTS)]
    assert positions == list(range(1, NUM_EVENTS + 1))
    assert len(server.script.calls) == 1


def test_a_break_while_nobody_reads_resumes_too(server, client):
    pause = Pause(2)
    server.script.turns.extend([pause, Break(0)])
    with client.generate("The") as generation:
        tokens = [generation.read(timeout_s=20)]
        give_up(generation, times=1)
        pause.go.set()
        server.restart()
        while (token := generation.read(timeout_s=20)) is not None:
            tokens.append(token)
    assert [token.token_id for token in tokens] == list(TOKEN_IDS)


@pytest.mark.parametrize("is_timed", [False, True])
def test_an_error_comes_after_the_tokens_before_it_and_stays(server, client, is_timed):
    server.script.turns.extend([Break(3), Break(0, grpc.StatusCode.INVALID_ARGUMENT)])
    generation = client.generate("The")
    timeout_s = 20 if is_timed else None
    tokens = [generation.read(timeout_s), generation.read(timeout_s)]
    assert [token.token_id for token in tokens] == list(TOKEN_IDS[:2])
    for _ in range(2 if is_timed else 1):
        with pytest.raises(whence.InvalidRequestError):
            generation.read(timeout_s)


async def test_an_error_comes_after_the_tokens_before_it_and_stays_async(server):
    server.script.turns.extend([Break(3), Break(0, grpc.StatusCode.INVALID_ARGUMENT)])
    async with whence.AsyncClient(server.target) as client:
        generation = client.generate("The")
        assert [(await anext(generation)).token_id for _ in range(2)] == list(TOKEN_IDS[:2])
        for _ in range(2):
            with pytest.raises(whence.InvalidRequestError):
                await anext(generation)


async def test_a_reader_that_is_slow_is_waited_for(server):
    """Otherwise a client's memory would hold whatever its program has not read yet."""
    server.script.events = batched(journal(steps((1,) * 20)), 1)
    async with (
        whence.AsyncClient(server.target) as client,
        client.generations.watch() as watched,
    ):
        await anext(watched)
        await wait_until(lambda: len(watched._buffer._items) >= MOST_AHEAD)
        await client.models()
        assert len(watched._buffer._items) == MOST_AHEAD
        rest = [await anext(watched) for _ in range(21)]
    assert [int(item.position) for item in rest] == list(range(2, 23))


def list_reading_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "whence-reader"}


async def test_a_timed_stream_that_is_dropped_ends_its_call_and_its_thread(server, client):
    server.script.turns.append(Hold(2))
    of_others = list_reading_threads()
    generation = client.generate("The")
    assert generation.read(timeout_s=20).text == "Hello"
    (thread,) = list_reading_threads() - of_others
    del generation
    gc.collect()
    await wait_until(lambda: not thread.is_alive())


async def test_a_stream_that_is_dropped_ends_its_call_and_its_task(server):
    server.script.turns.append(Hold(2))
    async with whence.AsyncClient(server.target) as client:
        before = asyncio.all_tasks()
        generation = client.generate("The")
        await anext(generation)
        assert asyncio.all_tasks() > before
        del generation
        gc.collect()
        await wait_until(lambda: asyncio.all_tasks() <= before)


@pytest.mark.parametrize(("num_events", "so_far"), [(2, "1 token"), (3, "2 tokens")])
def test_a_deadline_that_passed_says_after_how_many_tokens(server, client, num_events, so_far):
    told = ""
    # On a machine that stands still, a deadline passes before the tokens have come.
    for timeout_s in (0.3, 2.0, 8.0):
        server.script.turns.clear()
        server.script.turns.append(Hold(num_events))
        with pytest.raises(whence.DeadlineExceededError) as raised:
            client.generate("The", timeout_s=timeout_s).result()
        told = str(raised.value)
        if f"passed after {so_far}:" in told:
            break
    assert f"passed after {so_far}:" in told


async def test_a_deadline_that_passed_says_after_how_many_tokens_async(server):
    server.script.turns.append(Hold(1))
    async with whence.AsyncClient(server.target) as client:
        with pytest.raises(whence.DeadlineExceededError, match="passed after 0 tokens"):
            await client.generate("The", timeout_s=0.3).result()


READS = {
    "generation": lambda client: client.generate("The"),
    "generations": lambda client: client.generations.watch(),
    "a training": lambda client: client.training_runs.watch(),
}


@pytest.fixture
def untakeable(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every stream a second response that the client cannot take, and no end for 20 s."""

    def receive(stream, response, take):
        position = getattr(response, "position", "") or getattr(response, "last_position", 0)
        if int(position) > 1:
            raise whence.InternalError("not to be taken", reason="EVENTS_MISSING")
        return take(stream, response)

    for kind in (WatchStream, TrainingRunStream):
        take = kind.receive
        monkeypatch.setattr(kind, "receive", partialmethod(receive, take=take))
    del server.script.events[1]
    server.script.turns.append(Hold(2))


def read_all(reading, timeout_s: float | None) -> None:
    while reading.read(timeout_s) is not None:
        pass


@pytest.mark.parametrize("is_timed", [False, True])
@pytest.mark.parametrize("start", READS.values(), ids=READS)
@pytest.mark.usefixtures("untakeable")
async def test_a_response_that_cannot_be_taken_ends_the_call(server, client, start, is_timed):
    reading = start(client)
    timeout_s = 20 if is_timed else None
    with pytest.raises(whence.InternalError) as raised:
        read_all(reading, timeout_s)
    assert raised.value.reason == "EVENTS_MISSING"
    await wait_until(lambda: server.script.num_ended == 1)
    with pytest.raises(whence.WhenceError):
        reading.read(timeout_s)
    assert len(server.script.calls) == 1, "the stream is not resumed"


@pytest.mark.parametrize("start", READS.values(), ids=READS)
@pytest.mark.usefixtures("untakeable")
async def test_a_response_that_cannot_be_taken_ends_the_call_async(server, start):
    async with whence.AsyncClient(server.target) as client:
        reading = start(client)
        for _ in range(2):
            with pytest.raises(whence.InternalError) as raised:
                _ = [item async for item in reading]
            assert raised.value.reason == "EVENTS_MISSING"
        await wait_until(lambda: server.script.num_ended == 1)
    assert len(server.script.calls) == 1, "the stream is not resumed"


@pytest.fixture
def incomplete(server: FakeServer) -> None:
    """Give a generation's stream a gap, after which it goes on for 20 s."""
    del server.script.events[1]
    server.script.turns.append(Hold(2))


@pytest.mark.usefixtures("incomplete")
def test_a_generation_with_a_gap_is_cancelled_at_close(server, client):
    with (
        pytest.raises(whence.InternalError, match="missing"),
        client.generate("The") as generation,
    ):
        generation.result()
    (cancel,) = server.script.requests(pb.CancelGenerationRequest)
    assert cancel.generation_id == generation.id


@pytest.mark.usefixtures("incomplete")
async def test_a_generation_with_a_gap_is_cancelled_at_close_async(server):
    async with whence.AsyncClient(server.target) as client:
        with pytest.raises(whence.InternalError, match="missing"):
            async with client.generate("The") as generation:
                await generation.result()
        (cancel,) = server.script.requests(pb.CancelGenerationRequest)
        assert cancel.generation_id == generation.id


def test_a_refused_generation_is_not_cancelled(server, client):
    refusal = error_details_pb2.ErrorInfo(reason="QUEUE_FULL", domain="whence.v1")
    server.script.turns.append(Break(0, grpc.StatusCode.RESOURCE_EXHAUSTED, (refusal,)))
    with pytest.raises(whence.ResourceExhaustedError), client.generate("The") as generation:
        generation.result()
    assert server.script.requests(pb.CancelGenerationRequest) == []


async def test_the_documented_heartbeat(server):
    text = (Path(__file__).parents[2] / "docs/clients.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(async def .*?)```", text, re.DOTALL)
    names = {"asyncio": asyncio, "json": json, "AsyncClient": whence.AsyncClient}
    exec(compile(f"from __future__ import annotations\n{example}", "clients.md", "exec"), names)
    pause = Pause(3)
    server.script.turns.append(pause)
    lines = []
    async with whence.AsyncClient(server.target) as client:
        async for line in names["stream"](client, "The"):
            lines.append(line)
            if line.startswith(":"):
                pause.go.set()
    data = [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]
    assert "".join(data) == "Hello world! café 中"
    assert len(lines) == len(data) + 1
    assert len(server.script.calls) == 1
