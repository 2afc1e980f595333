"""Readers of whole generations: the clients in Python, and the loop of docs/clients.md."""

import asyncio
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backend_process import ENVIRONMENTS
from required import find_program, skip_without

from whence import AsyncClient, Client, FinishReason, WhenceError
from whence.errors import Code

ROOT = Path(__file__).parents[2]
PACKAGES = ENVIRONMENTS / "node" / "node_modules"
"""Folder in which `make node` installs gRPC for Node."""
PROMPT = "The quick brown fox"
NODE_TIMEOUT_S = 240.0


@dataclass
class Reading:
    """Tokens that a reader received, and the end.

    Attributes:
        indexes: index of each token, in the order of arrival.
        token_ids: id of each token, in the same order.
        end: reason for which the generation finished, or the status and message of the error.
        num_unrecorded: number of tokens at the end that are said not to be on record.
        duration_s: seconds from the call to its end; for the loop in JavaScript, of all readers.
    """

    indexes: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    end: str = ""
    num_unrecorded: int = 0
    duration_s: float = 0.0

    def add(self, index: int, token_id: int) -> None:
        """Note a token."""
        self.indexes.append(index)
        self.token_ids.append(token_id)

    @property
    def num_doubled(self) -> int:
        """Number of tokens that came again."""
        return len(self.indexes) - len(set(self.indexes))

    @property
    def num_missing(self) -> int:
        """Number of tokens missing before the last one that came."""
        return max(self.indexes, default=-1) + 1 - len(set(self.indexes))

    def describe_difference(self, token_ids: Sequence[int], end: str = "length") -> str:
        """Return how this differs from a complete reading; "" if it does not."""
        if self.end != end:
            return f"{len(self.indexes)} tokens, then {self.end}"
        if self.num_doubled or self.num_missing:
            return f"{self.num_doubled} tokens doubled, {self.num_missing} missing"
        if self.token_ids != list(token_ids):
            return f"{len(self.token_ids)} tokens, not the {len(token_ids)} of an undisturbed run"
        return ""


Read = Callable[[Sequence[str], int], list[Reading]]
"""Reads one generation of so many tokens from each target, all at the same time.

Equal targets share a client.
"""


def make_options(num_tokens: int) -> dict[str, Any]:
    """Return the options of the clients in Python, for always the same tokens."""
    return {"max_new_tokens": num_tokens, "temperature": 0.9, "seed": 11, "ignore_eos": True}


def read_with_client(targets: Sequence[str], num_tokens: int) -> list[Reading]:
    """Read with `Client`, in a thread for each generation."""
    with ExitStack() as opened, ThreadPoolExecutor(len(targets)) as threads:
        clients = {target: opened.enter_context(Client(target)) for target in set(targets)}
        readings = threads.map(lambda target: _read_one(clients[target], num_tokens), targets)
        return list(readings)


def _read_one(client: Client, num_tokens: int) -> Reading:
    reading, began = Reading(), time.monotonic()
    with client.generate(PROMPT, **make_options(num_tokens)) as running:
        try:
            for token in running:
                reading.add(token.index, token.token_id)
            reading.end = str(running.finish_reason)
            reading.num_unrecorded = running.num_unrecorded_tokens
        except WhenceError as error:
            reading.end = _name_error(error)
        reading.duration_s = time.monotonic() - began
    return reading


def read_with_async_client(targets: Sequence[str], num_tokens: int) -> list[Reading]:
    """Read with `AsyncClient`, in one event loop."""

    async def read_all() -> list[Reading]:
        async with AsyncExitStack() as opened:
            clients = {
                target: await opened.enter_async_context(AsyncClient(target))
                for target in set(targets)
            }
            readings = (_read_one_async(clients[target], num_tokens) for target in targets)
            return list(await asyncio.gather(*readings))

    return asyncio.run(read_all())


async def _read_one_async(client: AsyncClient, num_tokens: int) -> Reading:
    reading, began = Reading(), time.monotonic()
    async with client.generate(PROMPT, **make_options(num_tokens)) as running:
        try:
            async for token in running:
                reading.add(token.index, token.token_id)
            reading.end = str(running.finish_reason)
            reading.num_unrecorded = running.num_unrecorded_tokens
        except WhenceError as error:
            reading.end = _name_error(error)
        reading.duration_s = time.monotonic() - began
    return reading


def _name_error(error: WhenceError) -> str:
    return f"{Code(error.code).name}: {error.message}"


def read_with_javascript(targets: Sequence[str], num_tokens: int) -> list[Reading]:
    """Read with the loop of docs/clients.md, in one process of Node.

    The test is skipped if Node or its gRPC is not installed.
    """
    decoding = {"sample": {"temperature": 0.9, "seed": 11}}
    decoding |= {"maxNewTokens": num_tokens, "ignoreEos": True}
    request = json.dumps({"prompt": PROMPT, "decoding": decoding})
    loop, _ = list_documented_code()
    driver = Path(__file__).with_name("read_generation.js").read_text(encoding="utf-8")
    began = time.monotonic()
    printed = run_javascript(loop + driver, request, *targets)
    readings = [Reading(duration_s=time.monotonic() - began) for _ in targets]
    for line in map(json.loads, printed.splitlines()):
        reading = readings[line["reader"]]
        if "index" in line:
            reading.add(line["index"], line["tokenId"])
        elif "finishReason" in line:
            reading.end = str(FinishReason.from_wire(line["finishReason"]))
            reading.num_unrecorded = line.get("numUnrecordedOffsets", 0)
        else:
            reading.end = line["error"]
    return readings


READERS: dict[str, Read] = {
    "Client": read_with_client,
    "AsyncClient": read_with_async_client,
    "JavaScript": read_with_javascript,
}


def list_documented_code() -> list[str]:
    """Return the blocks in JavaScript of docs/clients.md: the loop, and a program that calls it."""
    page = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
    return re.findall(r"```js\n(.*?)```", page, re.DOTALL)


def run_javascript(code: str, *arguments: str) -> str:
    """Run a program in the project's folder with gRPC for Node; return what it printed.

    The test is skipped if Node or its gRPC is not installed.
    """
    node = find_program("node", "put it and npm on the PATH, and run `make node`")
    if not PACKAGES.is_dir():
        skip_without("node", "gRPC for Node is not installed: run `make node`")
    result = subprocess.run(
        [node, "-", *arguments],
        input=code,
        capture_output=True,
        text=True,
        timeout=NODE_TIMEOUT_S,
        cwd=ROOT,
        env=os.environ | {"NODE_PATH": str(PACKAGES)},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
