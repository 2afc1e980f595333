"""The served page in a browser: what is on the screen, and what may not have happened."""

import json
from typing import Any
from urllib.parse import urlsplit

from awaiting import await_that
from backend_process import ENVIRONMENTS
from browser import read_console, read_requests
from required import skip_without
from selenium.webdriver.remote.webdriver import WebDriver

AXE = ENVIRONMENTS / "node" / "node_modules" / "axe-core" / "axe.min.js"
_NETWORK = frozenset({"http", "https", "ws", "wss"})
_CHECK = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then(
  ({violations}) => done(violations.map(({id, impact, nodes}) => [id, impact, nodes.map(
    (node) => node.html.slice(0, 160) + " " + (node.failureSummary ?? "").slice(0, 200))])),
  (error) => done([["axe", "critical", [String(error)]]]));
"""


class Screen:
    """The page at a server's address."""

    def __init__(self, driver: WebDriver, url: str) -> None:
        self.driver = driver
        self.url = url

    def open(self, path: str) -> None:
        """Load an address of the page anew."""
        self.driver.get("about:blank")
        self.driver.get(self.url + path)

    @property
    def path(self) -> str:
        """The address that is shown, without the server's part."""
        return self.driver.current_url.removeprefix(self.url)

    def read(self, selector: str = "main") -> str:
        """Return the text of the first element of a selector; "" if there is none."""
        script = "return document.querySelector(arguments[0])?.innerText ?? ''"
        text: str = self.driver.execute_script(script, selector)
        return text

    def count(self, selector: str) -> int:
        """Return the number of a selector's elements."""
        script = "return document.querySelectorAll(arguments[0]).length"
        found: int = self.driver.execute_script(script, selector)
        return found

    def wait_for(self, words: str, selector: str = "main") -> None:
        """Wait until an element's text has these words."""
        await_that(lambda: words in self.read(selector), f"{words!r} in {selector}")

    def wait_until(self, script: str, *arguments: Any) -> None:
        """Wait until a script returns a true value."""
        await_that(lambda: bool(self.driver.execute_script(script, *arguments)), script)

    def click(self, selector: str) -> None:
        """Click on an element once it is there."""
        self.wait_until("return document.querySelector(arguments[0])", selector)
        self.driver.execute_script("document.querySelector(arguments[0]).click()", selector)

    def find_faults(self) -> list[str]:
        """Return what axe-core finds that is serious or critical."""
        if not AXE.is_file():
            skip_without("node", "axe-core is not installed: make node")
        self.driver.execute_script(AXE.read_text(encoding="utf-8"))
        found = self.driver.execute_async_script(_CHECK)
        return [
            f"{rule}: {json.dumps(nodes[:4])}"
            for rule, impact, nodes in found
            if impact in {"serious", "critical"}
        ]

    def read_complaints(self) -> list[str]:
        """Return complaints of the console, and requests to other servers, since the last call."""
        own = urlsplit(self.url).netloc
        others = [
            url
            for url in read_requests(self.driver)
            if urlsplit(url).netloc != own and urlsplit(url).scheme in _NETWORK
        ]
        return [*read_console(self.driver), *others]
