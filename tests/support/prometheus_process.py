"""Prometheus in a process, for tests that query a page that it scrapes."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from backend_process import find_free_port
from required import skip_without

NEEDED = "apt-get install --no-install-recommends prometheus, or put it on the PATH"


@contextmanager
def prometheus(directory: Path, target: str, rules: Path | None = None) -> Iterator[str]:
    """Run Prometheus, which scrapes one target every 200 ms; yield its address.

    The test is skipped if Prometheus is not installed.
    """
    program = shutil.which("prometheus")
    if program is None:
        skip_without("prometheus", f"prometheus is not installed: {NEEDED}")
    address = f"127.0.0.1:{find_free_port()}"
    settings = {
        "global": {"scrape_interval": "200ms", "evaluation_interval": "200ms"},
        "rule_files": [] if rules is None else [str(rules)],
        "scrape_configs": [{"job_name": "whence", "static_configs": [{"targets": [target]}]}],
    }
    # JSON is YAML.
    (directory / "prometheus.yml").write_text(json.dumps(settings))
    process = subprocess.Popen(
        [
            program,
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address={address}",
            "--enable-feature=exemplar-storage",
            "--log.level=error",
        ]
    )
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(60)


async def ask(
    base: str, path: str, enough: Callable[[list[dict[str, Any]]], bool], **parameters: str
) -> list[dict[str, Any]]:
    """Query Prometheus' API until the answer is enough, and return it.

    Raises:
        AssertionError: it was not enough in two minutes; the message has the last answer.
    """
    found: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(120), aiohttp.ClientSession() as session:
            while True:
                try:
                    async with session.get(f"{base}/api/v1/{path}", params=parameters) as answer:
                        data = (await answer.json())["data"] if answer.status == 200 else []
                except aiohttp.ClientConnectionError:
                    data = []
                # Queries and rules have a name around their list; exemplars have none.
                found = data.get("result", data.get("groups")) if isinstance(data, dict) else data
                if enough(found):
                    return found
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{path} {parameters} answered last: {found}") from None
