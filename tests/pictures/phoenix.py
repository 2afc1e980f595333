"""Makes docs/pictures/phoenix.png: a generation's trace on Phoenix's own page.

    make setup phoenix
    apt-get install --no-install-recommends chromium chromium-driver
    .venv/bin/python tests/pictures/phoenix.py

The generation is the README's first example, on the real model; the step that chose the comma is
shown. Content capture is on, for that a reader wants to see the token: by default there would be
its id alone.
"""

import asyncio
import base64
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from backend_process import find_free_port, phoenix, run_backend, wait_for_answer
from server_process import ServerProcess

from whence_server.demo.real_model import NAME, ensure_real_model

PICTURE = Path(__file__).parents[2] / "docs" / "pictures" / "phoenix.png"
COMMAND = (
    *("generate", "What is the capital of France?", "--chat", "--temperature", "0.8"),
    *("--top-p", "0.95", "--seed", "13", "--candidates", "--num-candidates", "4"),
)
DIALOG = "[role=dialog]"
SHOWN_STEP = 6
NUM_SPANS = 15
CHROMIUM = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--window-size=1500,1174"),
)

IS_SHOWN = "return document.body.innerText.includes('whence.token.rank')"
OPEN_ATTRIBUTES = """
[...document.querySelectorAll('[role=tab]')]
    .find(tab => tab.innerText.startsWith('Attributes')).click()
"""
# Attributes come in no fixed order: those of the token go to the middle.
SCROLL_TO_THE_TOKEN = """
[...document.querySelectorAll('[role=dialog] *')]
    .filter(one => one.innerText && one.innerText.trim() == 'whence.token.rank')
    .pop().scrollIntoView({block: 'center'})
"""


async def main() -> None:
    """Generates, waits for the trace in Phoenix, and takes its picture."""
    with tempfile.TemporaryDirectory(prefix="whence-picture-") as name:
        directory = Path(name)
        with phoenix(directory / "phoenix") as (page, endpoint):
            with server(directory / "data", endpoint) as target:
                url = await address_of_step(page, generate(target))
            async with browser(directory) as session:
                png = await take(session, page, url)
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(png)
    print(f"{PICTURE}: {len(png):,} bytes")


@contextmanager
def server(data_dir: Path, endpoint: str) -> Iterator[str]:
    flags = ("--model-name", NAME, "--otlp-endpoint", endpoint)
    content = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "SPAN_ONLY"}
    with ServerProcess(ensure_real_model(), data_dir, *flags, environment=content) as process:
        yield process.target


def generate(target: str) -> str:
    """Runs the README's example; gives its trace id."""
    command = [sys.executable, "-m", "whence.cli", *COMMAND, "--target", target]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True)
    (trace_id,) = re.findall(r"trace ([0-9a-f]{32})", done.stderr)
    return str(trace_id)


async def address_of_step(page: str, trace_id: str) -> str:
    """The address of the trace's page with one step selected, once every span is there."""
    async with aiohttp.ClientSession() as session:
        projects = await wait_for_answer(session, bool, "GET", f"{page}/v1/projects")
        (project,) = projects["data"]
        found = await wait_for_answer(
            session,
            lambda answer: len(answer["data"]) == NUM_SPANS,
            "GET",
            f"{page}/v1/projects/default/spans",
            params={"trace_id": trace_id},
        )
    (step,) = [
        span for span in found["data"] if span["attributes"].get("whence.step.index") == SHOWN_STEP
    ]
    return f"{page}/projects/{project['id']}/traces/{trace_id}?selectedSpanNodeId={step['id']}"


class Browser:
    """A session of WebDriver (w3.org/TR/webdriver2), as far as it is needed here."""

    def __init__(self, driver: str, profile: Path) -> None:
        options = {"args": [*CHROMIUM, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        made = _ask("POST", f"{driver}/session", {"capabilities": {"alwaysMatch": wanted}})
        self._url = f"{driver}/session/{made['sessionId']}"

    def open(self, url: str) -> None:
        _ask("POST", f"{self._url}/url", {"url": url})

    def run(self, script: str) -> Any:
        return _ask("POST", f"{self._url}/execute/sync", {"script": script, "args": []})

    def picture_of(self, selector: str) -> bytes:
        wanted = {"using": "css selector", "value": selector}
        (element,) = _ask("POST", f"{self._url}/element", wanted).values()
        return base64.b64decode(_ask("GET", f"{self._url}/element/{element}/screenshot"))

    def close(self) -> None:
        _ask("DELETE", self._url)


@asynccontextmanager
async def browser(directory: Path) -> AsyncIterator[Browser]:
    port = find_free_port()
    with run_backend(["chromedriver", f"--port={port}"], directory / "chromedriver"):
        driver = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as asking:
            await wait_for_answer(
                asking, lambda it: it["value"]["ready"], "GET", f"{driver}/status"
            )
        session = Browser(driver, directory / "profile")
        try:
            yield session
        finally:
            session.close()


async def take(session: Browser, page: str, url: str) -> bytes:
    session.open(page)
    session.run("localStorage.setItem('arize-phoenix-theme', 'light')")
    session.open(url)
    await until(lambda: session.run(IS_SHOWN))
    session.run(OPEN_ATTRIBUTES)
    await still(session)
    session.run(SCROLL_TO_THE_TOKEN)
    return await still(session)


async def still(session: Browser) -> bytes:
    """The page's dialog, once it does not move any more: two pictures of it are the same."""
    pictures = [b"", session.picture_of(DIALOG)]

    def same() -> bool:
        pictures[:] = [pictures[1], session.picture_of(DIALOG)]
        return pictures[0] == pictures[1]

    await until(same)
    return pictures[1]


async def until(true: Callable[[], bool]) -> None:
    """Asks until it is so: for a minute at most."""
    for _ in range(120):
        if true():
            return
        await asyncio.sleep(0.5)
    raise TimeoutError


def _ask(method: str, url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["value"]


if __name__ == "__main__":
    asyncio.run(main())
