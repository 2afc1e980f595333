"""Headless Chromium, driven by Selenium, with its console messages and network requests."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from required import skip_without
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.remote.webdriver import WebDriver

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)


def find_missing_browser() -> str | None:
    """Return the reason why the browser cannot run here; None if it can."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return (
                f"{program} is not installed: "
                "apt-get install --no-install-recommends chromium chromium-driver"
            )
    return None


@contextmanager
def browser(profile: Path, *arguments: str) -> Iterator[WebDriver]:
    """Run a browser with a new profile in a directory, and with further arguments.

    The test is skipped if the two programs are not installed.
    """
    missing = find_missing_browser()
    if missing is not None:
        skip_without("chromium", missing)
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*_ARGUMENTS, *arguments, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # By its path, so that Selenium does not search for a driver.
    service = ChromeService(executable_path=shutil.which("chromedriver"))
    driver = Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def set_view(
    driver: WebDriver, width: int, height: int, *, dark: bool = False, scale: int = 1
) -> None:
    """Set the size of the window in CSS pixels, and the colour scheme of the page."""
    _execute(
        driver,
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=scale,
        mobile=False,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    _execute(driver, "Emulation.setEmulatedMedia", features=[scheme])


def read_console(driver: WebDriver) -> list[str]:
    """Return the messages of the console since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def read_requests(driver: WebDriver) -> list[str]:
    """Return the URLs that the page has requested since the last call, without files."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] in {"Network.requestWillBeSent", "Network.webSocketCreated"}
    ]
    return [url for url in asked if urlsplit(url).scheme != "file"]


def _execute(driver: WebDriver, command: str, **parameters: Any) -> None:
    driver.execute_cdp_cmd(command, parameters)
