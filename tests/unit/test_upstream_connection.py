"""The connection to an upstream: every fault has its error, and nothing is read without bound."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from aiohttp import web
from fake_upstream import FakeUpstream, make_events, serving, streaming
from waiting import wait_until

from whence_server.domain import errors
from whence_server.engines.upstream.wire.address import parse_address
from whence_server.engines.upstream.wire.api_key import ApiKey
from whence_server.engines.upstream.wire.connection import Connection, WireLimits
from whence_server.engines.upstream.wire.events import ServerSentEvents

LIMITS = WireLimits(connect_s=30.0, first_chunk_s=10.0, idle_s=10.0, answer_s=10.0)


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with serving() as served:
        yield served


def connect(url: str, limits: WireLimits = LIMITS, key_file: Path | None = None) -> Connection:
    return Connection(parse_address(url), ApiKey(key_file), limits)


async def read_stream(connection: Connection, path: str = "/stream") -> list[bytes]:
    stream = connection.stream(path, {"a": 1}, {}, ServerSentEvents)
    async with aclosing(stream):
        return [event.data async for event in stream]


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://models.example/team/v1/", "https://models.example/team"),
        (" http://[::1]:8000/v1 ", "http://[::1]:8000"),
    ],
)
def test_an_address_is_taken_with_v1_and_without(text: str, root: str) -> None:
    address = parse_address(text)
    assert str(address) == root
    assert str(address.join("/v1/models")) == root + "/v1/models"


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1:8000", "ftp://x/v1", "http://", "http://u:secret@x/v1", "http://x/?k=secret"],
)
def test_a_wrong_address_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        parse_address(text)
    assert "secret" not in caught.value.message


async def test_a_key_is_read_again_when_its_file_changes(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("first-key\n")
    upstream.answer_json("GET", "/v1/models", {})
    connection = connect(upstream.url, key_file=key_file)
    await connection.get_object("/v1/models")
    key_file.write_text("second-key\n")
    await connection.get_object("/v1/models")
    await connection.close()
    keys = [headers["authorization"] for headers in upstream.headers]
    assert keys == ["Bearer first-key", "Bearer second-key"]


@pytest.mark.parametrize("content", [b"", b"two keys", "schlüssel".encode(), b"x" * 20_000])
async def test_a_file_that_holds_no_key_is_refused_and_not_quoted(
    content: bytes, tmp_path: Path
) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(content)
    with pytest.raises(errors.ConfigurationError, match="one key of printable ASCII") as caught:
        ApiKey(key_file).make_headers()
    assert "two keys" not in caught.value.message


async def test_an_upstream_that_is_down_is_away() -> None:
    async with serving() as gone:
        url = gone.url
    connection = connect(url)
    with pytest.raises(
        errors.UpstreamAwayError, match=f"{url} cannot be reached: Connection refused"
    ):
        await connection.get_object("/v1/models")
    assert await connection.check("/health", 1.0) is False
    await connection.close()


async def test_a_peer_that_does_not_speak_http_is_named() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = connect(f"http://127.0.0.1:{port}")
    with pytest.raises(errors.UpstreamMalformedError, match="does not speak HTTP"):
        await connection.get_object("/v1/models")
    await connection.close()
    server.close()
    await server.wait_closed()


async def test_a_reset_in_the_middle_of_a_stream_is_away_after_what_came(
    upstream: FakeUpstream,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        async with streaming(request) as response:
            await response.write(make_events({"n": 1}, done=False))
            assert request.transport is not None
            request.transport.abort()
        return response

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url)
    stream = connection.stream("/stream", {}, {}, ServerSentEvents)
    assert (await anext(stream)).data == b'{"n": 1}'
    with pytest.raises(errors.UpstreamAwayError, match="in the middle of its answer"):
        await anext(stream)
    await connection.close()


@pytest.mark.parametrize(
    ("limits", "begins", "words"),
    [
        # Within this time the request has to arrive, on a busy machine too.
        (WireLimits(first_chunk_s=0.5), False, "could not begin its answer within 0.5 s"),
        (WireLimits(idle_s=0.1), True, "sent nothing for 0.1 s in the middle of its answer"),
    ],
    ids=["first chunk", "between chunks"],
)
async def test_a_silent_stream_ends_at_its_limit(
    upstream: FakeUpstream, limits: WireLimits, begins: bool, words: str
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if begins:
            async with streaming(request) as response:
                await response.write(make_events({"n": 1}, done=False))
                await asyncio.Event().wait()
        await asyncio.Event().wait()
        raise AssertionError

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url, limits)
    with pytest.raises(errors.UpstreamAwayError, match=words):
        await read_stream(connection)
    await wait_until(lambda: upstream.num_cancelled == 1)
    await connection.close()


async def test_comments_keep_a_stream_alive(upstream: FakeUpstream) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        async with streaming(request) as response:
            for _ in range(10):
                await response.write(b": ping\n\n")
                await asyncio.sleep(0.2)
            await response.write(make_events({"n": 1}))
        return response

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url, WireLimits(idle_s=1.5))
    assert await read_stream(connection) == [b'{"n": 1}', b"[DONE]"]
    await connection.close()


async def test_an_endless_line_is_refused_and_its_connection_closed(
    upstream: FakeUpstream,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        async with streaming(request) as response:
            await response.write(b"data: ")
            while True:
                await response.write(b"x" * 65_536)

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url, WireLimits(max_event_bytes=1 << 20))
    with pytest.raises(errors.UpstreamMalformedError, match="more than 1048576 bytes"):
        await read_stream(connection)
    await wait_until(lambda: upstream.num_cancelled == 1)
    await connection.close()


async def test_a_large_body_is_refused(upstream: FakeUpstream) -> None:
    upstream.answer_json("GET", "/v1/models", {"data": "x" * 5000})
    connection = connect(upstream.url, WireLimits(max_body_bytes=1000))
    with pytest.raises(errors.UpstreamMalformedError, match="more than 1000 bytes"):
        await connection.get_object("/v1/models")
    await connection.close()


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"a": "\xff"}', b'{"a": NaN}', b""])
async def test_an_answer_that_is_no_json_object_is_named(
    upstream: FakeUpstream, body: bytes
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    upstream.answer("GET", "/v1/models", answer)
    connection = connect(upstream.url)
    with pytest.raises(errors.UpstreamMalformedError, match="GET /v1/models"):
        await connection.get_object("/v1/models")
    await connection.close()


async def test_redirects_are_not_followed(upstream: FakeUpstream) -> None:
    async def answer(_request: web.Request) -> web.Response:
        raise web.HTTPTemporaryRedirect("http://127.0.0.1:1/other")

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url)
    with pytest.raises(errors.UpstreamError, match=r"redirects to http://127\.0\.0\.1:1/other"):
        await read_stream(connection)
    await connection.close()


async def test_proxies_of_the_environment_are_not_used(
    upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    upstream.answer_json("GET", "/v1/models", {"data": []})
    connection = connect(upstream.url)
    assert await connection.get_object("/v1/models") == {"data": []}
    await connection.close()


async def test_the_key_is_in_no_error(upstream: FakeUpstream, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_text("sk-secret-123")
    upstream.answer_json("POST", "/stream", {"error": {"message": "bad key sk-secret-123"}}, 401)
    connection = connect(upstream.url, key_file=key_file)
    with pytest.raises(errors.UpstreamKeyError, match="--upstream-api-key-file") as caught:
        await read_stream(connection)
    assert "sk-secret-123" not in caught.value.message
    await connection.close()


async def test_an_upstream_notices_that_nobody_reads_any_more(
    upstream: FakeUpstream,
) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        async with streaming(request) as response:
            await response.write(make_events({"n": 1}, done=False))
            await asyncio.Event().wait()
        return response

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url)
    stream = connection.stream("/stream", {}, {}, ServerSentEvents)
    async with aclosing(stream):
        await anext(stream)
    await wait_until(lambda: upstream.num_cancelled == 1)
    await connection.close()


async def test_a_slow_reader_stops_the_upstream(upstream: FakeUpstream) -> None:
    num_written = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal num_written
        async with streaming(request) as response:
            while True:
                await response.write(b"data: " + b"x" * 65_528 + b"\n\n")
                num_written += 65_536

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url)
    stream = connection.stream("/stream", {}, {}, ServerSentEvents)
    async with aclosing(stream):
        await anext(stream)
        # It stops when the sockets' buffers are full; what they hold is the kernel's choice.
        before = -1
        while before != num_written:
            before = num_written
            await asyncio.sleep(0.3)
        assert num_written < 32 << 20
        await anext(stream)
    await connection.close()


async def test_a_hundred_streams_run_at_once_and_their_connections_are_used_again(
    upstream: FakeUpstream,
) -> None:
    arrived = 0
    all_arrived = asyncio.Event()
    peers: list[object] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal arrived
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        arrived += 1
        if arrived == 100:
            all_arrived.set()
        async with streaming(request) as response:
            await all_arrived.wait()
            await response.write(make_events({"n": 1}))
        return response

    upstream.answer("POST", "/stream", answer)
    connection = connect(upstream.url)
    async with asyncio.timeout(30):
        answers = await asyncio.gather(*(read_stream(connection) for _ in range(100)))
        assert answers == [[b'{"n": 1}', b"[DONE]"]] * 100
        await read_stream(connection)
    assert peers[100] in peers[:100]
    await connection.close()


async def test_tls_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"data": []})

    app = web.Application()
    app.router.add_get("/v1/models", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    connection = connect(url)
    with pytest.raises(errors.UpstreamAwayError, match="TLS failed"):
        await connection.get_object("/v1/models")
    await connection.close()
    await runner.cleanup()


async def test_a_request_is_sent_again_if_its_old_connection_was_closed_meanwhile() -> None:
    """A server may close an idle connection at the moment in which it is used again."""
    num_connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        while (await reader.readline()).strip():
            pass
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        # The next request is read and not answered.
        await reader.readline()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = connect(f"http://127.0.0.1:{port}", replace(LIMITS, stale_s=60.0))
    for _ in range(3):
        assert await connection.get_object("/v1/models") == {}
    assert num_connections == 3
    await connection.close()
    server.close()
    await server.wait_closed()


async def test_a_request_is_not_sent_again_once_the_upstream_may_have_begun_it() -> None:
    limits = replace(LIMITS, stale_s=0.05)
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            requests.append(line)
            while (await reader.readline()).strip():
                pass
            if line.startswith(b"POST"):
                # It has the request, and works on it for longer than a stale connection lives.
                await asyncio.sleep(2 * limits.stale_s)
                break
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = connect(f"http://127.0.0.1:{port}", limits)
    assert await connection.get_object("/v1/models") == {}
    with pytest.raises(errors.UpstreamAwayError, match="cannot be reached"):
        await connection.post_object("/v1/completions", {})
    assert [line.split()[0] for line in requests] == [b"GET", b"POST"]
    await connection.close()
    server.close()
    await server.wait_closed()


async def test_a_request_is_not_sent_again_on_a_new_connection() -> None:
    num_connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_connections
        num_connections += 1
        await reader.readline()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    connection = connect(f"http://127.0.0.1:{port}")
    with pytest.raises(errors.UpstreamAwayError, match="cannot be reached"):
        await connection.post_object("/v1/completions", {})
    assert num_connections == 1
    await connection.close()
    server.close()
    await server.wait_closed()
