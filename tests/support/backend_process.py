"""Observability backends in processes of their own, from environments of their own.

`make phoenix` and `make mlflow` install them under build/, apart from our own packages.
"""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
from required import skip_without

ENVIRONMENTS = Path(__file__).parents[2] / "build" / "backends"
ANSWER_TIMEOUT_S = 300.0
"""Time that a backend may take to start and to answer: ten seconds alone, more under load."""
TEST_TIMEOUT_S = 600

Answer = TypeVar("Answer")


@contextlib.contextmanager
def phoenix(directory: Path) -> Iterator[tuple[str, str]]:
    """Start Phoenix; yield the address of its page and REST API, and that for spans.

    It may still be starting.
    """
    command = [str(find_python("phoenix")), "-m", "phoenix.server.main", "serve"]
    page, otlp = find_free_port(), find_free_port()
    with run_backend(
        command,
        directory,
        PHOENIX_HOST="127.0.0.1",
        PHOENIX_PORT=str(page),
        PHOENIX_GRPC_PORT=str(otlp),
        PHOENIX_WORKING_DIR=str(directory),
        PHOENIX_TELEMETRY_ENABLED="false",
        PHOENIX_ALLOW_EXTERNAL_RESOURCES="false",
        PHOENIX_DISABLE_AGENT_ASSISTANT="true",
    ):
        yield f"http://127.0.0.1:{page}", f"http://127.0.0.1:{otlp}"


@contextlib.contextmanager
def mlflow(directory: Path) -> Iterator[str]:
    """Start MLflow; yield the address of its page, REST API and OTLP. It may still be starting."""
    port = find_free_port()
    command = [str(find_python("mlflow")), "-m", "mlflow", "server", "--workers", "1"]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", "sqlite:///mlflow.db"]
    with run_backend([*command, *where, *store], directory, MLFLOW_DISABLE_TELEMETRY="true"):
        yield f"http://127.0.0.1:{port}"


def find_python(backend: str) -> Path:
    """Return the interpreter of a backend's environment; skip the test if there is none."""
    environment = ENVIRONMENTS / backend
    if not (environment / ".ready").exists():
        skip_without(backend, f"{backend} is not installed: run `make {backend}`")
    return environment / "bin" / "python"


def find_free_port() -> int:
    """Return a free port of loopback.

    It is below the range from which systems assign ports, so that no other test is assigned it
    before the backend listens.
    """
    anywhere = random.SystemRandom()
    while True:
        port = anywhere.randrange(15_000, 30_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def run_backend(command: list[str], directory: Path, **environment: str) -> Iterator[None]:
    """Run a backend until the block is left, with its output in `directory`/log."""
    directory.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=kept | {"HOME": str(directory), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            # Some start further processes, which have to end with them.
            start_new_session=True,
        )
        try:
            yield
        except BaseException:
            print((directory / "log").read_text(errors="replace")[-4_000:])
            raise
        finally:
            os.killpg(process.pid, 9)
            process.wait(30)


async def wait_for_answer(
    session: aiohttp.ClientSession,
    wanted: Callable[[Any], bool],
    method: str,
    url: str,
    **arguments: Any,
) -> Any:
    """Ask a backend until it answers as wanted, and return the answer.

    Raises:
        AssertionError: it did not in ANSWER_TIMEOUT_S; the message has the last answer.
    """
    last: object = None
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            while True:
                try:
                    async with session.request(method, url, **arguments) as response:
                        last = await response.text()
                        if response.status == 200 and wanted(await response.json()):
                            return await response.json()
                except (aiohttp.ClientConnectionError, aiohttp.ContentTypeError) as error:
                    last = error
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{url} answered last: {last}") from None
