"""A client that goes in the middle of its answer is on record as gone, and is no fault."""

import asyncio
import logging

import pytest
from aiohttp import web

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
