"""The end of a client: closed under its readers, forked, made before its event loop, full."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from client_fake_server import FakeServer, Hold
from waiting import wait_until

import whence
from whence.client import CLOSE_TIMEOUT_S
from whence.v1 import generation_pb2 as pb


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


READS: dict[str, Callable[[whence.Client], object]] = {
    "a generation": lambda client: list(client.generate("The")),
    "a generation with time limits": lambda client: read_with_limits(client.generate("The")),
    "a watch": lambda client: list(client.generations.watch()),
    "a watch of a training": lambda client: list(client.training_runs.watch()),
}


def read_with_limits(generation: whence.Generation) -> None:
    while generation.read(timeout_s=20) is not None:
        pass


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_a_reader_learns_that_its_client_was_closed(server, read):
    server.script.turns.append(Hold(2))
    client = whence.Client(server.target)
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read, client)
        await wait_until(lambda: server.script.num_held == 1)
        client.close()
        with pytest.raises(whence.CallCancelledError, match="the client is closed"):
            reading.result(20)
    client.close()


ASYNC_READS: dict[str, Callable[[whence.AsyncClient], object]] = {
    "a generation": lambda client: client.generate("The"),
    "events": lambda client: client.generate("The").events(),
    "a watch": lambda client: client.generations.watch(),
    "a watch of a training": lambda client: client.training_runs.watch(),
}


@pytest.mark.parametrize("read", ASYNC_READS.values(), ids=ASYNC_READS)
async def test_a_reader_learns_that_its_client_was_closed_async(server, read):
    server.script.turns.append(Hold(2))
    client = whence.AsyncClient(server.target)

    async def collect() -> list[object]:
        return [item async for item in read(client)]

    reading = asyncio.create_task(collect())
    await wait_until(lambda: server.script.num_held == 1)
    await client.close()
    with pytest.raises(whence.CallCancelledError, match="the client is closed"):
        await reading
    await client.close()


async def test_a_reader_that_waits_for_a_retry_learns_it_too():
    client = whence.AsyncClient("unix:/nonexistent/socket", connect_timeout_s=60)
    reading = asyncio.create_task(client.generate("The").result())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(reading), 0.5)
    await client.close()
    with pytest.raises(whence.CallCancelledError):
        await asyncio.wait_for(reading, 30)


def test_calls_of_a_closed_client_and_closing_again(server):
    client = whence.Client(server.target)
    unread, unread_watch = client.generate("The"), client.generations.watch()
    client.close()
    for call in (client.models, client.vocabulary, lambda: client.generate("The")):
        with pytest.raises(whence.CallCancelledError) as raised:
            call()
        assert raised.value.reason == "CLIENT_CLOSED"
    for reader in (unread, unread_watch):
        with pytest.raises(whence.CallCancelledError):
            next(reader)
        reader.close()
        reader.close()
    client.close()


async def test_calls_of_a_closed_client_and_closing_again_async(server):
    client = whence.AsyncClient(server.target)
    unread, unread_watch = client.generate("The"), client.generations.watch()
    await client.close()
    for call in (client.models, client.vocabulary, lambda: client.generate("The").result()):
        with pytest.raises(whence.CallCancelledError) as raised:
            await call()
        assert raised.value.reason == "CLIENT_CLOSED"
    for reader in (unread, unread_watch):
        with pytest.raises(whence.CallCancelledError):
            await anext(reader)
    await unread.close()
    unread_watch.close()
    await client.close()


async def test_a_cancelled_reader_is_cancelled_even_if_its_client_is_closed(server):
    """The program that ends a task expects CancelledError, whatever it closes beside it."""
    server.script.turns.append(Hold(2))
    client = whence.AsyncClient(server.target)
    reading = asyncio.create_task(client.generate("The").result())
    await wait_until(lambda: server.script.num_held == 1)
    reading.cancel()
    await client.close()
    with pytest.raises(asyncio.CancelledError):
        await reading


def test_a_full_connection_keeps_neither_other_calls_nor_other_clients_waiting():
    with FakeServer(("grpc.max_concurrent_streams", 2)) as server:
        server.script.turns.extend([Hold(2)] * 2)
        with whence.Client(server.target, timeout_s=60) as client:
            generations = [client.generate("The") for _ in range(2)]
            assert all(next(generation) for generation in generations)
            waiting = client.generate("The")
            assert client.models()
            assert client.vocabulary().text_of(1) == "Hello"
            server.script.turns.append(Hold(2))
            with whence.Client(server.target, timeout_s=60) as other:
                assert next(other.generate("The"))
            before = time.monotonic()
            generations[0].close()
            assert time.monotonic() - before < CLOSE_TIMEOUT_S, "it did not wait for a stream"
            (cancel,) = server.script.requests(pb.CancelGenerationRequest)
            assert cancel.generation_id == generations[0].id
            assert waiting.result().text, "its place is free for the next one in line"


async def test_a_full_connection_keeps_nothing_waiting_async():
    with FakeServer(("grpc.max_concurrent_streams", 2)) as server:
        server.script.turns.extend([Hold(2)] * 2)
        async with whence.AsyncClient(server.target, timeout_s=60) as client:
            generations = [client.generate("The") for _ in range(2)]
            for generation in generations:
                assert await anext(generation)
            assert await client.models()
            await asyncio.wait_for(generations[0].close(), CLOSE_TIMEOUT_S)
            assert len(server.script.requests(pb.CancelGenerationRequest)) == 1
            assert await anext(client.generate("The"))


def test_an_async_client_made_before_its_loop_works_in_one_loop_after_the_other(server):
    client = whence.AsyncClient(server.target)
    with pytest.raises(whence.FailedPreconditionError, match="in a coroutine"):
        client.generate("The")

    async def read() -> str:
        return (await client.generate("The").result()).text

    assert asyncio.run(read()) == asyncio.run(read()) == "Hello world! café 中"
    asyncio.run(client.close())


async def test_an_async_client_of_another_loop_says_so(server):
    async with whence.AsyncClient(server.target) as client:
        await client.models()

        def ask() -> str:
            with pytest.raises(whence.FailedPreconditionError) as raised:
                asyncio.run(client.models())
            return raised.value.reason

        assert await asyncio.to_thread(ask) == "CLIENT_OF_ANOTHER_LOOP"


FORKED = """
import asyncio, os, signal, sys, threading
import whence

def in_child(call):
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return status
    signal.alarm(20)  # a child that hangs is killed, and its status is not 0
    try:
        print(call(), flush=True)
    except whence.WhenceError as error:
        print(error.reason, error.message, flush=True)
    # gRPC's asyncio API itself may crash at the end of a fork that ends in the usual way.
    (os._exit if sys.argv[2] == "asyncio" else sys.exit)(0)

client = whence.Client(sys.argv[1])
client.models()
generation, timed = client.generate("The"), client.generate("The")
watched = client.generations.watch()
next(generation), timed.read(timeout_s=20), next(watched)

def close():
    generation.close(), timed.close(), watched.close(), client.close()
    return "closed"

async def main():
    async with whence.AsyncClient(sys.argv[1]) as client:
        await client.models()
        generation = client.generate("The")
        await anext(generation)
        def run(call):
            asyncio.events._set_running_loop(None)
            return asyncio.run(call())
        async def new():
            async with whence.AsyncClient(sys.argv[1]) as own:
                return await own.models()
        async def read():
            return await anext(generation)
        for call in (client.models, read, new):
            statuses.append(in_child(lambda: run(call)))

calls = [client.models, lambda: next(generation), lambda: timed.read(timeout_s=1),
         lambda: next(watched), lambda: client.generate("x"), close]
statuses = [in_child(call) for call in calls]
if sys.argv[2] == "asyncio":
    asyncio.run(main())
print(statuses, generation.read(timeout_s=20).text, sep="")
client.close()
os._exit(0)
"""


@pytest.mark.parametrize("api", ["threads", "asyncio"])
def test_a_forked_child_gets_an_error_and_never_hangs(server, api):
    server.script.turns.extend([Hold(3)] * 3)
    done = subprocess.run(
        [sys.executable, "-c", FORKED, server.target, api],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    *children, parent = done.stdout.splitlines()
    errors = [line for line in children if line.startswith("CLIENT_OF_ANOTHER_PROCESS")]
    assert len(errors) == (5 if api == "threads" else 8), done
    assert all("multiprocessing's `spawn`" in error for error in errors)
    assert set(children) - set(errors) == {"closed"}, done
    assert parent == f"{[0] * len(children)} world", "the parent's own streams go on"
