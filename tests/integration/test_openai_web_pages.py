"""A real browser's pages ask the HTTP server: those of other sites get nothing, and change nothing.

The server is the real one around a handler that needs no model.
"""

import asyncio
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest
from aiohttp import web
from browser import browser
from selenium.webdriver.remote.webdriver import WebDriver

from whence_server.http.bodies import read_json_object
from whence_server.http.exchange import Exchange, guard
from whence_server.http.openai.errors import OpenAIErrors
from whence_server.http.origins import Origins
from whence_server.http.security_headers import PAGE_POLICY, POLICY
from whence_server.http.server import HttpServer
from whence_server.rpc.calls import CallLog

REBOUND = "rebound.example"
"""Name that the browser resolves to this machine, as after a rebinding."""
ASK = """
const [url, type, done] = arguments;
const options = {method: "POST", headers: type ? {"Content-Type": type} : {}, body: "{}"};
const read = async answer => [
  answer.status, await answer.text(), answer.headers.get("whence-generation-id")];
fetch(url, options).then(read, error => [0, error.name, null]).then(done);
"""


class Model:
    """Web server in a thread of its own, which counts the generations that it begins."""

    def __init__(self, allowed: str) -> None:
        self.num_begun = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        origins = Origins([allowed], checks_host=True)
        calls, errors = CallLog(lambda _: None), OpenAIErrors({})
        routes = {
            ("POST", "/"): guard("/", origins.protect(self._generate), errors, calls),
            ("OPTIONS", "/"): guard("/", origins.protect(origins.answer_preflight), errors, calls),
            ("GET", "/"): guard("/", origins.protect(self._show_page), errors, calls),
        }
        self._server = HttpServer(
            routes, "127.0.0.1", 0, routes["GET", "/"], max_connections=32, origins=origins
        )

    async def _generate(self, exchange: Exchange) -> web.StreamResponse:
        await read_json_object(exchange.request, 1024)
        self.num_begun += 1
        exchange.generation_id = "made"
        return web.Response(text="Paris", headers=exchange.make_headers())

    async def _show_page(self, _exchange: Exchange) -> web.StreamResponse:
        return web.Response(
            text="<html></html>", content_type="text/html", headers={POLICY: PAGE_POLICY}
        )

    @property
    def url(self) -> str:
        return self._server.url

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(30)
        return self

    def __exit__(self, *_error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_told: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Origin of a site with one page."""
    directory = tmp_path_factory.mktemp("site")
    (directory / "index.html").write_text("<html></html>")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    profile: Path = tmp_path_factory.mktemp("profile")
    with browser(profile, f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1") as running:
        yield running


def ask(driver: WebDriver, page: str, url: str, media_type: str) -> list[object]:
    """Have a page ask the server; return the status, the text and the generation's id."""
    driver.get(page)
    answered: list[object] = driver.execute_async_script(ASK, url, media_type)
    return answered


@pytest.mark.parametrize("media_type", ["", "text/plain", "application/json"])
def test_a_page_of_another_site_reads_nothing_and_begins_nothing(
    driver: WebDriver, site: str, media_type: str
) -> None:
    with Model(allowed="https://app.example") as model:
        assert ask(driver, site, model.url, media_type) == [0, "TypeError", None]
        # The same page is refused under a name that belongs to this machine as well.
        other = site.replace("127.0.0.1", "localhost")
        assert ask(driver, other, model.url, media_type) == [0, "TypeError", None]
        assert model.num_begun == 0


def test_an_allowed_page_sends_requests_and_reads_the_answers(driver: WebDriver, site: str) -> None:
    with Model(allowed=site) as model:
        assert ask(driver, site, model.url, "application/json") == [200, "Paris", "made"]
        assert model.num_begun == 1


def test_a_page_of_the_server_itself_needs_no_permission(driver: WebDriver) -> None:
    with Model(allowed="https://app.example") as model:
        answered = ask(driver, model.url, model.url, "application/json")
        assert answered == [200, "Paris", "made"]


def test_a_name_that_was_rebound_to_this_machine_gets_nothing(driver: WebDriver) -> None:
    with Model(allowed="https://app.example") as model:
        rebound = model.url.replace("127.0.0.1", REBOUND)
        # The page itself is refused already, and what is shown instead may send nothing.
        assert ask(driver, rebound, rebound, "application/json") == [0, "TypeError", None]
        assert REBOUND in driver.page_source
        # A page that came before its name was rebound sends its requests to the same origin.
        host = rebound.removeprefix("http://").removesuffix("/")
        headers = {"Content-Type": "application/json", "Host": host, "Origin": f"http://{host}"}
        request = urllib.request.Request(model.url, b"{}", headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        with refused.value as answer:
            assert (answer.status, REBOUND in answer.read().decode()) == (403, True)
        assert model.num_begun == 0
