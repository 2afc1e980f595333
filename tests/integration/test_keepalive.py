"""A connection that is silently lost is noticed by both of its ends, in time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import grpc
import pytest

from whence.channel import make_channel_options
from whence.requests import DEFAULT_DISCONNECT_GRACE_S
from whence.v1 import generation_pb2 as g
from whence.v1.generation_pb2_grpc import GenerationServiceStub
from whence_server.rpc import generation_servicer
from whence_server.rpc import server as rpc_server
from whence_server.rpc.calls import CallLog, Method
from whence_server.rpc.server import ServerOptions, build_server

CLIENT_NOTICES_S, SERVER_NOTICES_S = 15.0, 30.0
SCALE = 10
"""The test's times are this much shorter than the product's."""
SLACK_S = 10.0
"""Time for which a busy machine may hold the ends up: with it, these are still shorter."""


class BlackHole:
    """Relay before a server that from some moment on forwards nothing, and closes nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open = asyncio.Event()
        self._open.set()
        self._writers: list[asyncio.StreamWriter] = []

    def swallow(self) -> None:
        self._open.clear()

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += [writer, back]
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))

    async def close(self) -> None:
        for writer in self._writers:
            writer.close()
        for writer in self._writers:
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                if self._open.is_set():
                    writer.write(data)


@asynccontextmanager
async def relayed(port: int) -> AsyncIterator[tuple[BlackHole, str]]:
    hole = BlackHole(port)
    server = await asyncio.start_server(hole.relay, "127.0.0.1", 0)
    async with server:
        yield hole, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await hole.close()


class QuietServicer:
    """Servicer of a stream that sends one message, and then nothing until its reader is gone."""

    def __init__(self) -> None:
        self.gone_at = asyncio.get_running_loop().create_future()

    async def resume(self, _request: object, _call: object) -> AsyncIterator[bytes]:
        yield g.ResumeGenerationResponse().SerializeToString()
        try:
            await asyncio.Event().wait()
        finally:
            self.gone_at.set_result(asyncio.get_running_loop().time())


def scale_down(options: list[tuple[str, int]]) -> list[tuple[str, int]]:
    pings = {"grpc.keepalive_time_ms", "grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"}
    return [(name, value // SCALE if name in pings else value) for name, value in options]


async def test_both_ends_notice_a_connection_that_forwards_nothing_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = asyncio.get_running_loop().time
    for name in ("_PING_AFTER_MS", "_PING_ANSWER_MS"):
        monkeypatch.setattr(rpc_server, name, getattr(rpc_server, name) // SCALE)
    servicer = QuietServicer()
    methods = [Method("ResumeGeneration", g.ResumeGenerationRequest, stream=servicer.resume)]
    server = await build_server(
        ServerOptions(("127.0.0.1:0",)),
        {generation_servicer.SERVICE: methods},
        CallLog(lambda _: None),
    )
    await server.server.start()
    async with relayed(server.endpoints[0].port or 0) as (hole, target):
        options = scale_down(make_channel_options(target))
        async with grpc.aio.insecure_channel(target, options) as channel:
            call = GenerationServiceStub(channel).ResumeGeneration(g.ResumeGenerationRequest())
            await call.read()
            hole.swallow()
            begin = clock()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert clock() - begin < CLIENT_NOTICES_S / SCALE + SLACK_S
            gone_at = await asyncio.wait_for(servicer.gone_at, SERVER_NOTICES_S)
            assert gone_at - begin < SERVER_NOTICES_S / SCALE + SLACK_S
    await server.stop(None)


def test_generation_outlives_the_time_until_its_reader_resumes() -> None:
    """The server may notice at once, and the client as late as it can."""
    assert CLIENT_NOTICES_S + 30 < DEFAULT_DISCONNECT_GRACE_S
    options = dict(make_channel_options("127.0.0.1:1"))
    notices_ms = options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"]
    assert notices_ms <= CLIENT_NOTICES_S * 1_000
