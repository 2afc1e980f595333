"""The cookie of a login: its name and its flags, over TLS and without."""

import hashlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession, CookieJar
from certificates import Authority

from whence_server.access.gate import OPEN_GATE, Gate
from whence_server.access.token_file import TokenFile
from whence_server.http.login import list_login_routes
from whence_server.http.openai.routes import make_not_found
from whence_server.http.server import HttpServer
from whence_server.rpc.calls import CallLog

TOKEN = {"token": "secret"}


def make_gate(folder: Path) -> Gate:
    path = folder / "callers"
    digest = hashlib.sha256(b"secret").hexdigest()
    path.write_text(json.dumps({"id": "ann", "sha256": digest, "scopes": ["read"]}))
    path.chmod(0o600)
    return Gate(TokenFile(path))


@asynccontextmanager
async def serving(gate: Gate, tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpServer]:
    calls = CallLog(lambda _: None)
    server = HttpServer(
        list_login_routes(calls, gate),
        "127.0.0.1",
        0,
        make_not_found(calls),
        max_connections=8,
        tls=tls,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.close()


async def test_over_tls_no_other_host_and_no_plain_page_can_set_the_cookie(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.issue("server", "localhost", "127.0.0.1")
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    trust = ssl.create_default_context(cafile=str(authority.ca))
    gate = make_gate(tmp_path)
    async with (
        serving(gate, tls) as server,
        ClientSession(cookie_jar=CookieJar(unsafe=True)) as session,
        session.post(f"{server.url}/login", json=TOKEN, ssl=trust) as answer,
    ):
        assert answer.status == 200
        cookie = answer.headers["Set-Cookie"]
    # Servers on other ports of the host get the same cookies.
    assert cookie.startswith(f"__Host-whence-login-{server.url.rpartition(':')[2]}=")
    assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie


async def test_servers_on_one_host_have_cookies_of_their_own(tmp_path: Path) -> None:
    gate = make_gate(tmp_path)
    names = []
    async with serving(gate) as one, serving(gate) as other, ClientSession() as session:
        for server in (one, other):
            async with session.post(f"{server.url}/login", json=TOKEN) as answer:
                cookie = answer.headers["Set-Cookie"]
            assert "Secure" not in cookie
            assert "HttpOnly" in cookie
            names.append(cookie.partition("=")[0])
    assert names == [f"whence-login-{it.url.rpartition(':')[2]}" for it in (one, other)]


async def test_a_server_that_is_open_to_everybody_sets_no_cookie() -> None:
    async with (
        serving(OPEN_GATE) as server,
        ClientSession() as session,
        session.post(f"{server.url}/login", json=TOKEN) as answer,
    ):
        assert answer.status == 200
        assert "Set-Cookie" not in answer.headers


async def test_a_body_that_is_no_token_is_refused(tmp_path: Path) -> None:
    async with serving(make_gate(tmp_path)) as server, ClientSession() as session:
        for body, status in (
            ({}, 400),
            ({"token": ""}, 400),
            ({"token": 7}, 400),
            ({"token": "secret", "more": 1}, 400),
            ({"token": "other"}, 401),
            ({"token": "secret\r\nX: y"}, 400),
            # It would be kept as long as it was sent.
            ({"token": "secret" + 10_000 * " "}, 400),
            ({"token": " secret"}, 400),
            ({"token": "s" * 16_385}, 400),
        ):
            async with session.post(f"{server.url}/login", json=body) as answer:
                assert answer.status == status, body
                assert "Set-Cookie" not in answer.headers
        async with session.post(f"{server.url}/login", data=b"token=secret") as answer:
            assert answer.status == 415
