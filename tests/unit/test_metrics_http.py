"""The pages' web server: two paths, clear errors."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from waiting import wait_until

from whence_server.domain.errors import ConfigurationError
from whence_server.telemetry.health import HealthAnswer
from whence_server.telemetry.metrics.http import MetricsServer
from whence_server.telemetry.metrics.page import Page


def render(accept: str) -> Page:
    if accept == "trouble":
        raise RuntimeError("no page today")
    return Page(b"accepts " + accept.encode(), "text/plain; version=0.0.4; charset=utf-8")


def health() -> HealthAnswer:
    return HealthAnswer(HEALTHY.is_set(), b'{"status": "as told"}')


HEALTHY = asyncio.Event()


@pytest.fixture
async def server() -> AsyncIterator[MetricsServer]:
    server = MetricsServer(render, health, "127.0.0.1", 0)
    await server.start()
    yield server
    await server.close()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_the_page_is_rendered_for_what_is_accepted(
    server: MetricsServer, session: aiohttp.ClientSession
) -> None:
    async with session.get(server.url + "?x=1", headers={"Accept": "a/b;q=1,c/d"}) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert await answer.read() == b"accepts a/b;q=1,c/d"
    async with session.head(server.url) as answer:
        assert (answer.status, await answer.read()) == (200, b"")


async def test_health_is_a_status_and_a_document(
    server: MetricsServer, session: aiohttp.ClientSession
) -> None:
    url = f"http://127.0.0.1:{server.port}/healthz"
    for change, status in ((HEALTHY.clear, 503), (HEALTHY.set, 200)):
        change()
        async with session.get(url) as answer:
            assert answer.status == status
            assert await answer.json() == {"status": "as told"}
            assert answer.headers["Cache-Control"] == "no-store"
        async with session.head(url) as answer:
            assert (answer.status, await answer.read()) == (status, b"")


@pytest.mark.parametrize(
    "path", ["/", "/healthz/", "/health", "/metrics/", "/metrics2", "//metrics"]
)
async def test_there_is_no_other_page(
    server: MetricsServer, session: aiohttp.ClientSession, path: str
) -> None:
    async with session.get(f"http://127.0.0.1:{server.port}{path}") as answer:
        assert answer.status == 404


async def test_other_http_methods_are_not_allowed(
    server: MetricsServer, session: aiohttp.ClientSession
) -> None:
    async with session.post(server.url, data=b"x") as answer:
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}


async def test_an_error_of_a_page_is_500_and_the_next_request_is_served(
    server: MetricsServer, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with session.get(server.url, headers={"Accept": "trouble"}) as answer:
        assert answer.status == 500
        assert b"no page today" not in await answer.read()
    assert "no page today" in caplog.text
    async with session.get(server.url) as answer:
        assert answer.status == 200


async def test_a_port_in_use_is_an_error_that_names_it(server: MetricsServer) -> None:
    other = MetricsServer(render, health, "127.0.0.1", server.port)
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{server.port}: .*or 0 for any"):
        await other.start()
    await other.close()


async def test_an_address_of_another_machine_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1:0: "):
        await MetricsServer(render, health, "192.0.2.1", 0).start()


@asynccontextmanager
async def bounded(max_connections: int, exchange_s: float) -> AsyncIterator[MetricsServer]:
    body = bytes(16 << 20)  # beyond what the sockets hold

    def large(accept: str) -> Page:
        del accept
        return Page(body, "text/plain")

    server = MetricsServer(
        large, health, "127.0.0.1", 0, max_connections=max_connections, exchange_s=exchange_s
    )
    await server.start()
    yield server
    await server.close()


STALLS = {
    "silent": b"",
    "half a request": b"GET /metrics HTTP/1.1\r\nHost: x\r\n",
    "no end of a body": b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nx",
    "a slow reader": b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", STALLS.values(), ids=STALLS)
async def test_stalled_connections_do_not_block_others(
    session: aiohttp.ClientSession, sent: bytes
) -> None:
    async with bounded(8, 3600.0) as server:
        stalled = []
        for _ in range(40):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
            writer.write(sent)
            stalled.append((reader, writer))
            assert server.num_connections <= 8
        HEALTHY.set()
        async with session.get(f"http://127.0.0.1:{server.port}/healthz") as answer:
            assert answer.status == 200
            assert answer.headers["Connection"] == "close"
        assert server.num_connections <= 8
        for _, writer in stalled:
            writer.transport.abort()
        await wait_until(lambda: server.num_connections == 0)


@pytest.mark.parametrize("sent", STALLS.values(), ids=STALLS)
async def test_a_connection_that_stalls_is_ended_in_time(sent: bytes) -> None:
    async with bounded(8, 0.05) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(sent)
        await wait_until(lambda: server.num_connections == 1)
        await wait_until(lambda: server.num_connections == 0)
        writer.transport.abort()


async def test_no_connection_stays_idle(server: MetricsServer) -> None:
    for request in (b"GET /metrics", b"GET /nothing", b"POST /metrics"):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = await reader.read()  # to the end
        assert b"Connection: close" in answer
        writer.close()
    await wait_until(lambda: server.num_connections == 0)
