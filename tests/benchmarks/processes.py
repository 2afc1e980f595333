"""Processes that answer JSON lines, and the receiver and server that a benchmark needs."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workloads import DEVICE

HERE = Path(__file__).parent


class Answering:
    """Process of a script of this folder, which answers every JSON line with one.

    Args:
        script: file name of the script.
        arguments: arguments of the script.
        environment: further environment variables of the process.
    """

    def __init__(self, script: str, *arguments: str, environment: Mapping[str, str] = {}) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment,
        )
        self.ready = self._read()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, **command: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a process of the benchmark ended with {self._process.wait()}")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@contextmanager
def answering(
    script: str, *arguments: str, environment: Mapping[str, str] = {}
) -> Iterator[Answering]:
    """Run the script until the block is left."""
    process = Answering(script, *arguments, environment=environment)
    try:
        yield process
    finally:
        process.close()


def find_free_port() -> int:
    """Return a free port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def server(model: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server with default settings and a new journal; yield its process and target.

    Its prefix cache is off unless a flag turns it on, as runs repeat their prompts.
    """
    own = ("--model", str(model), "--device", DEVICE, "--prefix-cache-tokens", "0")
    with serving(*own, *flags) as served:
        yield served


@contextmanager
def serving(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server on any engine with a new journal; yield its process and target."""
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as data_dir:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "whence_server", "serve", "--data-dir", data_dir),
                *("--listen", "127.0.0.1:0", "--log-level", "warning", *flags),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("serving "):
            raise SystemExit(f"the server ended with {process.wait()}")
        try:
            yield process, line.split(" on ", 1)[1].split(", ")[0].strip()
        finally:
            process.terminate()
            process.wait()
