"""The web server's connections are bounded, and none keeps out those who ask."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from aiohttp import ClientSession, web

from whence_server.http.connections import Connections
from whence_server.http.server import HttpServer

REQUEST = b"GET /held HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Held:
    """Web server that answers requests of /held once it is told to."""

    def __init__(self, max_connections: int) -> None:
        self.released = asyncio.Event()
        self.arrived: asyncio.Queue[None] = asyncio.Queue()
        routes = {("GET", "/held"): self.answer_later, ("GET", "/"): self.answer}
        self.server = HttpServer(
            routes, "127.0.0.1", 0, self.answer, max_connections=max_connections
        )

    async def answer(self, _request: web.Request) -> web.StreamResponse:
        return web.Response(text="ok")

    async def answer_later(self, _request: web.Request) -> web.StreamResponse:
        self.arrived.put_nowait(None)
        await self.released.wait()
        return web.Response(text="ok")

    @property
    def port(self) -> int:
        return int(self.server.url.rpartition(":")[2])


@asynccontextmanager
async def holding(max_connections: int) -> AsyncIterator[Held]:
    held = Held(max_connections)
    await held.server.start()
    try:
        yield held
    finally:
        held.released.set()
        await held.server.close()


@asynccontextmanager
async def connected(port: int, data: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        yield reader
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Read until the end of the connection; b"" if it is aborted."""
    async with asyncio.timeout(60):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


async def test_silent_connections_give_way_to_one_that_asks() -> None:
    async with holding(4) as held, AsyncExitStack() as open_ones, ClientSession() as session:
        silent = [await open_ones.enter_async_context(connected(held.port)) for _ in range(8)]
        async with session.get(held.server.url) as answer:
            assert await answer.text() == "ok"
        assert await read_all(silent[0]) == b""


async def test_busy_connections_are_kept_and_the_newest_is_refused() -> None:
    async with holding(2) as held, AsyncExitStack() as open_ones:
        busy = [
            await open_ones.enter_async_context(connected(held.port, REQUEST)) for _ in range(2)
        ]
        for _ in busy:
            await held.arrived.get()
        async with connected(held.port, REQUEST) as refused:
            assert await read_all(refused) == b""
        held.released.set()
        assert [(await read_all(reader))[-2:] for reader in busy] == [b"ok", b"ok"]


async def test_a_connection_whose_headers_never_end_is_ended() -> None:
    connections = Connections(asyncio.Protocol, 4, first_request_s=0.05)
    listening = await asyncio.get_running_loop().create_server(connections, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        async with connected(port, b"GET / HT") as reader:
            assert await read_all(reader) == b""
        assert len(connections) == 0
