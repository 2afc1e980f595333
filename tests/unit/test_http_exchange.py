"""Requests that end before their answer: their client goes, or their login ends."""

import asyncio
import hashlib
import json
import logging
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from whence_server.access.gate import Gate
from whence_server.access.logins import LIFETIME_S, Logins
from whence_server.access.token_file import TokenFile
from whence_server.domain.errors import Code
from whence_server.domain.generation import CallRecord
from whence_server.http.exchange import Exchange, guard
from whence_server.http.openai.errors import OpenAIErrors
from whence_server.http.server import HttpServer
from whence_server.rpc.calls import CallLog


async def test_a_client_that_goes_in_mid_answer_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: asyncio.Queue[CallRecord] = asyncio.Queue()
    client_left = asyncio.Event()

    async def stream(exchange: Exchange) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(exchange.request)
        exchange.response = response
        await response.write(b"the first part")
        await client_left.wait()
        transport = exchange.request.transport
        if transport is not None:
            # As the end of the connection does, once the event loop has read it.
            transport.close()
        await response.write_eof()
        return response

    handle = guard("/", stream, OpenAIErrors({}), CallLog(told.put_nowait))
    server = HttpServer({("GET", "/"): handle}, "127.0.0.1", 0, handle, max_connections=4)
    await server.start()
    try:
        port = int(server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b"the first part")
        writer.close()
        client_left.set()
        async with asyncio.timeout(60):
            record = await told.get()
    finally:
        await server.close()
    assert record.error is None
    assert record.http is not None
    assert (record.status_code, record.http.status_code) == (Code.CANCELLED.value, 200)
    assert [line for line in caplog.records if line.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("end", ["log out", "twelve hours"])
async def test_a_stream_ends_with_the_login_that_began_it(tmp_path: Path, end: str) -> None:
    now_s = 0.0
    path = tmp_path / "callers"
    digest = hashlib.sha256(b"secret").hexdigest()
    path.write_text(json.dumps({"id": "ann", "sha256": digest, "scopes": ["read"]}))
    gate = Gate(TokenFile(path))
    gate.logins = Logins(lambda: now_s)
    login = gate.logins.begin("Bearer secret", "ann")

    async def stream(exchange: Exchange) -> web.StreamResponse:
        exchange.response = web.StreamResponse()
        await exchange.response.prepare(exchange.request)
        await exchange.response.write(b"begun ")
        await asyncio.Event().wait()
        return exchange.response

    route = "/api/v1/watch"
    calls = CallLog(lambda _: None)
    watch = guard(route, stream, OpenAIErrors({}), calls, gate=gate, takes_login=True)
    server = HttpServer({("GET", route): watch}, "127.0.0.1", 0, watch, max_connections=4)
    await server.start()
    port = server.url.rpartition(":")[2]
    cookie = {"Cookie": f"whence-login-{port}={login}"}
    by_token = {"Authorization": "Bearer secret"}
    try:
        async with (
            asyncio.timeout(60),
            ClientSession() as session,
            session.get(server.url + route, headers=cookie) as answer,
            # A program's own token counts, whatever cookie its client keeps.
            session.get(server.url + route, headers=cookie | by_token) as other,
        ):
            assert await answer.content.readexactly(6) == b"begun "
            assert await other.content.readexactly(6) == b"begun "
            gate.check_running()
            if end == "log out":
                gate.logins.end(login)
            else:
                now_s = LIFETIME_S
            gate.check_running()
            told = await answer.content.read()
            assert b"unauthenticated" in told.lower() or b"invalid_api_key" in told
            assert gate.sessions.end_invalid() == 0
            assert not other.content.at_eof()
    finally:
        await server.close()
