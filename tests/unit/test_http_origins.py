"""The web server serves programs and its own pages, and refuses pages of other sites."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import ClientSession, web

from whence_server.http.bodies import read_json_object
from whence_server.http.exchange import Exchange, guard
from whence_server.http.openai.errors import OpenAIErrors
from whence_server.http.origins import Origins
from whence_server.http.server import HttpServer
from whence_server.rpc.calls import CallLog

APP = "https://app.example"
JSON = {"Content-Type": "application/json"}


class Counted:
    """Web server that counts the bodies that it has read."""

    def __init__(self, origins: Origins) -> None:
        self.num_read = 0
        calls, errors = CallLog(lambda _: None), OpenAIErrors({})
        routes = {
            ("POST", "/"): guard("/", origins.protect(self.read), errors, calls),
            ("OPTIONS", "/"): guard("/", origins.protect(origins.answer_preflight), errors, calls),
        }
        not_found = guard("", origins.protect(self.read), errors, calls)
        self.server = HttpServer(
            routes, "127.0.0.1", 0, not_found, max_connections=8, origins=origins
        )

    async def read(self, exchange: Exchange) -> web.StreamResponse:
        await read_json_object(exchange.request, 1024)
        self.num_read += 1
        return web.Response(text="read")

    @property
    def port(self) -> str:
        return self.server.url.rpartition(":")[2]


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    made = Counted(Origins([APP], checks_host=True))
    await made.server.start()
    yield made
    await made.server.close()


async def post(
    counted: Counted, headers: Mapping[str, str], method: str = "POST", body: bytes = b"{}"
) -> tuple[int, Any, Mapping[str, str]]:
    """Send a request; return the status, the error or text, and the headers."""
    # aiohttp would add a type of its own.
    skipped = ("Content-Type",)
    async with (
        ClientSession(skip_auto_headers=skipped) as session,
        session.request(method, counted.server.url, data=body, headers=headers) as answer,
    ):
        is_json = answer.content_type == "application/json"
        read = (await answer.json())["error"] if is_json else await answer.text()
        return answer.status, read, answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Host": "localhost:{port}"},
        {"Host": "api.localhost"},
        {"Host": "127.0.0.1."},
        {"Host": "[::1]:{port}"},
        {"Host": "10.0.0.7:8000"},
        {"Host": "app.example"},
        {"Origin": "http://127.0.0.1:{port}"},
        {"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"},
        # Behind a proxy that ends TLS and names the server otherwise.
        {"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": APP},
        {"Origin": APP, "Sec-Fetch-Site": "cross-site"},
        {"Content-Type": "application/json; charset=utf-8"},
    ],
)
async def test_programs_and_allowed_pages_are_served(
    counted: Counted, headers: dict[str, str]
) -> None:
    filled = {name: value.format(port=counted.port) for name, value in headers.items()}
    status, read, answered = await post(counted, JSON | filled)
    assert (status, read, counted.num_read) == (200, "read", 1)
    allowed = headers.get("Origin") == APP
    assert answered.get("Access-Control-Allow-Origin") == (APP if allowed else None)
    assert answered["Vary"] == "Origin"
    assert ("whence-generation-id" in answered.get("Access-Control-Expose-Headers", "")) == allowed


@pytest.mark.parametrize(
    ("headers", "reason", "told"),
    [
        ({"Origin": "https://evil.example"}, "origin_not_allowed", "https://evil.example"),
        ({"Origin": "null"}, "origin_not_allowed", "null"),
        ({"Origin": "https://app.example:444"}, "origin_not_allowed", "--http-allow-origin"),
        ({"Origin": "http://127.0.0.1:1"}, "origin_not_allowed", "http://127.0.0.1:1"),
        ({"Sec-Fetch-Site": "cross-site"}, "origin_not_allowed", "another origin;"),
        ({"Sec-Fetch-Site": "same-site"}, "origin_not_allowed", "another origin;"),
        # A page whose name was let point to this machine is of the same origin as this server.
        (
            {
                "Host": "evil.example:80",
                "Origin": "http://evil.example:80",
                "Sec-Fetch-Site": "same-origin",
            },
            "host_not_allowed",
            "evil.example:80",
        ),
        # A stranger's header is no fault of ours, for the log to have with its traceback.
        ({"Origin": "http://[::1"}, "origin_not_allowed", "http://[::1"),
        ({"Origin": "http://a]"}, "origin_not_allowed", "http://a]"),
        ({"Host": "[::1"}, "host_not_allowed", "[::1"),
        ({"Host": "a]"}, "host_not_allowed", "a]"),
        ({"Host": "localhost.evil.example"}, "host_not_allowed", "localhost.evil.example"),
        ({"Host": "127.0.0.1.evil.example"}, "host_not_allowed", "127.0.0.1.evil.example"),
    ],
)
async def test_pages_of_other_sites_are_refused(
    counted: Counted, headers: dict[str, str], reason: str, told: str
) -> None:
    for method in ("POST", "OPTIONS", "GET"):
        status, error, answered = await post(counted, JSON | headers, method)
        assert (status, error["code"], error["type"]) == (403, reason, "permission_error")
        assert told in error["message"]
        assert "Access-Control-Allow-Origin" not in answered
    assert counted.num_read == 0


@pytest.mark.parametrize(
    "media_type",
    [
        # The three that a page may send anywhere, without asking first.
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; application/json",
        "application/jsonp",
        "",
    ],
)
async def test_a_body_of_another_type_is_refused(counted: Counted, media_type: str) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    status, error, _ = await post(counted, headers)
    assert (status, error["code"], counted.num_read) == (415, "unsupported_media_type", 0)
    assert "Content-Type: application/json" in error["message"]
    assert media_type in error["message"]


async def test_a_browser_is_told_what_an_allowed_page_may_send(counted: Counted) -> None:
    asked = {
        "Origin": APP,
        "Sec-Fetch-Site": "cross-site",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
    }
    status, read, answered = await post(counted, asked, "OPTIONS", b"")
    assert (status, read) == (204, "")
    assert answered["Access-Control-Allow-Origin"] == APP
    assert answered["Access-Control-Allow-Headers"] == asked["Access-Control-Request-Headers"]
    assert "POST" in answered["Access-Control-Allow-Methods"]


async def test_beyond_loopback_any_host_is_this_server() -> None:
    counted = Counted(Origins())
    await counted.server.start()
    try:
        own = {"Host": "api.example", "Origin": "https://api.example"}
        assert (await post(counted, JSON | own))[0] == 200
        other = {"Host": "api.example", "Origin": "https://evil.example"}
        assert (await post(counted, JSON | other))[0] == 403
    finally:
        await counted.server.close()


async def test_a_link_of_another_site_may_open_a_page_and_nothing_else() -> None:
    origins = Origins(checks_host=True)
    calls, errors = CallLog(lambda _: None), OpenAIErrors({})

    async def show(_exchange: Exchange) -> web.StreamResponse:
        return web.Response(text="shown")

    page = guard("/", origins.protect(show, is_page=True), errors, calls)
    other = guard("/api", origins.protect(show), errors, calls)
    routes = {("GET", "/"): page, ("POST", "/"): page, ("GET", "/api"): other}
    server = HttpServer(routes, "127.0.0.1", 0, other, max_connections=8, origins=origins)
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    opened = link | {"Sec-Fetch-Dest": "document"}
    await server.start()
    try:
        async with ClientSession() as session:
            for method, path, headers, status in (
                ("GET", "/", opened, 200),
                ("POST", "/", opened, 403),
                ("GET", "/", link | {"Sec-Fetch-Dest": "iframe"}, 403),
                ("GET", "/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
                ("GET", "/", opened | {"Host": "rebound.example"}, 403),
                ("GET", "/api", opened, 403),
            ):
                async with session.request(method, server.url + path, headers=headers) as answer:
                    assert answer.status == status, (method, path, headers)
    finally:
        await server.close()
