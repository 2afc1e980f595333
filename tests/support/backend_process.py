"""Observability backends in processes of their own, from environments of their own.

`make phoenix` and `make mlflow` install them under build/, apart from everything of ours.
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
"""A backend may still be starting: ten seconds by itself, and more beside other work."""
TEST_TIMEOUT_S = 600

Answer = TypeVar("Answer")


@contextlib.contextmanager
def phoenix(directory: Path) -> Iterator[tuple[str, str]]:
    """Gives the address of its page and REST, and the one for spans; it may take a while yet."""
    command = [str(python_of("phoenix")), "-m", "phoenix.server.main", "serve"]
    page, otlp = free_port(), free_port()
    with running(
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
    """Gives the address of its page, its REST and its OTLP; it may take a while yet."""
    port = free_port()
    command = [str(python_of("mlflow")), "-m", "mlflow", "server", "--workers", "1"]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    store = ["--backend-store-uri", "sqlite:///mlflow.db"]
    with running([*command, *where, *store], directory, MLFLOW_DISABLE_TELEMETRY="true"):
        yield f"http://127.0.0.1:{port}"


def python_of(backend: str) -> Path:
    """The interpreter of a backend's environment; skips the test where there is none."""
    environment = ENVIRONMENTS / backend
    if not (environment / ".ready").exists():
        skip_without(
            backend, f"{backend} is not installed: `make {backend}` does it, apart from the rest"
        )
    return environment / "bin" / "python"


def free_port() -> int:
    """A port that nobody has.

    It is below those that systems give to whoever asks for any: what else connects or listens
    until the backend does, in tests beside this one, gets another.
    """
    anywhere = random.SystemRandom()
    while True:
        port = anywhere.randrange(15_000, 30_000)
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running(command: list[str], directory: Path, **environment: str) -> Iterator[None]:
    """A backend; what it says goes to `directory`/log, and it ends with the test."""
    directory.mkdir()
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=kept | {"HOME": str(directory), **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            # Some start further processes, which must not outlive them.
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


async def answered(
    session: aiohttp.ClientSession,
    wanted: Callable[[Any], bool],
    method: str,
    url: str,
    **arguments: Any,
) -> Any:
    """Asks, once a backend is up, until its answer is the one that is wanted.

    Raises:
        AssertionError: it was not, in ANSWER_TIMEOUT_S; with the last answer.
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
