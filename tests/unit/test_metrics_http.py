"""The pages' web server: two paths, clear errors."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest

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


async def test_it_is_for_reading(server: MetricsServer, session: aiohttp.ClientSession) -> None:
    async with session.post(server.url, data=b"x") as answer:
        assert answer.status == 405
        assert set(answer.headers["Allow"].split(",")) == {"GET", "HEAD"}


async def test_a_page_that_fails_is_an_error_and_the_next_one_comes(
    server: MetricsServer, session: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with session.get(server.url, headers={"Accept": "trouble"}) as answer:
        assert answer.status == 500
        assert b"no page today" not in await answer.read()
    assert "no page today" in caplog.text
    async with session.get(server.url) as answer:
        assert answer.status == 200


async def test_a_port_that_is_taken_is_said(server: MetricsServer) -> None:
    other = MetricsServer(render, health, "127.0.0.1", server.port)
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{server.port}: .*or 0 for any"):
        await other.start()
    await other.close()


async def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1:0: "):
        await MetricsServer(render, health, "192.0.2.1", 0).start()
