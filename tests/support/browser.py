"""Headless Chromium, driven by Selenium, and all that it complained of or asked a network for."""

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


def missing_browser() -> str | None:
    """What keeps the browser from running here; None where nothing does."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            return (
                f"{program} is not installed: "
                "apt-get install --no-install-recommends chromium chromium-driver"
            )
    return None


@contextmanager
def browser(profile: Path) -> Iterator[WebDriver]:
    """A browser with a fresh profile in that directory.

    Without the two programs, the test that asked is skipped.
    """
    missing = missing_browser()
    if missing is not None:
        skip_without("chromium", missing)
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (*_ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # By its path, so that Selenium looks for no driver elsewhere.
    service = ChromeService(executable_path=shutil.which("chromedriver"))
    driver = Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: WebDriver, width: int, height: int, *, dark: bool = False, scale: int = 1) -> None:
    """Gives the window its size in CSS pixels, and the page its colour scheme."""
    _told(
        driver,
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=scale,
        mobile=False,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    _told(driver, "Emulation.setEmulatedMedia", features=[scheme])


def complaints(driver: WebDriver) -> list[str]:
    """What the console has said since the last time."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: WebDriver) -> list[str]:
    """The addresses that the page has asked for since the last time, but for those of files."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] in {"Network.requestWillBeSent", "Network.webSocketCreated"}
    ]
    return [url for url in asked if urlsplit(url).scheme != "file"]


def _told(driver: WebDriver, command: str, **parameters: Any) -> None:
    driver.execute_cdp_cmd(command, parameters)
