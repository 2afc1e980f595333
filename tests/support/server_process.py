"""A real `whence-server serve` in its own process, which tests call and kill."""

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil
from computing import DEVICE

from whence_server.demo.real_model import NAME
from whence_server.demo.warm_start import bring_findings, keep_findings

READY_TIMEOUT_S = 240.0
LINE_TIMEOUT_S = 60.0
STARTS = Path(__file__).parents[2] / "build" / "starts"
"""Folder with what earlier servers of tests found out about the tiny models."""


def socket_target(directory: Path) -> str:
    """Return the address of a Unix socket in a directory.

    Paths of sockets have at most 107 bytes, and pytest's paths are long.
    """
    path = str(directory / "s")
    return f"unix:{min(path, os.path.relpath(path), key=len)}"


class ServerProcess:
    """Server on a Unix socket, unless `flags` have another address.

    `model` is None for a server with `--upstream`. `prefix` is a command that replaces itself by
    the server with exec.

    Attributes:
        target: address for clients.
        http_url: URL of the HTTP server, if `flags` have one.
        log: lines that it has written to standard error so far.
    """

    def __init__(
        self,
        model: Path | None,
        data_dir: Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        data_dir.mkdir(parents=True, exist_ok=True)
        # The trials of a model take seconds of processor time, and the first server of all makes
        # them for the others. Their conditions are named in the file, down to the code.
        self._data_dir = data_dir
        self._has_model = model is not None
        is_real = model is not None and model.name.startswith(NAME)
        self._kept = None if is_real or model is None else STARTS / model.name
        if self._has_model:
            bring_findings(data_dir, self._kept)
        self.target = socket_target(data_dir)
        self.http_url = ""
        listen = [] if "--listen" in flags else ["--listen", self.target]
        device = [] if "--device" in flags else ["--device", DEVICE]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "WHENCE_"))}
        self.process = subprocess.Popen(
            [
                *prefix,
                sys.executable,
                "-m",
                "whence_server",
                "serve",
                *(() if model is None else ("--model", str(model), *device)),
                "--data-dir",
                str(data_dir),
                *listen,
                *flags,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited | {"HF_HUB_OFFLINE": "1"} | (environment or {}),
        )
        self.log: list[str] = []
        self._ready: queue.Queue[str | None] = queue.Queue()
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("serving "):
                self._ready.put(line.split(" on ", 1)[1].strip())
        self._ready.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)

    def wait_ready(self) -> Self:
        """Wait until the server reports that it serves, and read its target."""
        target = self._ready.get(timeout=READY_TIMEOUT_S)
        if target is None:
            status = self.process.wait()
            raise AssertionError(f"the server ended with {status}:\n" + "".join(self.log))
        addresses = target.split(", ")
        self.target, self.http_url = addresses[0], addresses[-1]
        if self._has_model:
            keep_findings(self._data_dir, self._kept)
        return self

    def wait_line(self, words: str) -> str:
        """Wait until the log has a line with these words, and return the first one.

        A thread reads the log, and may come later than an answer of the server that was written
        after the line.
        """
        deadline = time.monotonic() + LINE_TIMEOUT_S
        while True:
            for line in tuple(self.log):
                if words in line:
                    return line
            assert time.monotonic() < deadline, f"no line has {words!r}:\n" + "".join(self.log)
            time.sleep(0.01)

    def find_metrics(self) -> str:
        """Wait until the server has told the URL of its metrics page; return it without a path."""
        found = re.search(r"https?://[^/\s]+", self.wait_line("metrics are on"))
        assert found is not None
        return found[0]

    @property
    def pid(self) -> int:
        """Process id of the front."""
        return self.process.pid

    @property
    def engine_pid(self) -> int:
        """Process id of the engine."""
        found = []
        for child in psutil.Process(self.pid).children():
            # A process that has ended has no command, and may be gone by now.
            with suppress(psutil.NoSuchProcess):
                if "engines.transformers.worker" in " ".join(child.cmdline()):
                    found.append(child.pid)
        (pid,) = found
        return pid

    def kill(self) -> None:
        """Send SIGKILL, on which no handler runs and nothing is flushed."""
        self.process.kill()
        self.wait()

    def terminate(self) -> int:
        """Send SIGTERM, on which the server drains; return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self, timeout_s: float = 120.0) -> int:
        """Wait until the server has ended; return the exit status."""
        status = self.process.wait(timeout_s)
        for reader in self._readers:
            reader.join(timeout_s)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return status

    def __enter__(self) -> Self:
        return self.wait_ready()

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.kill()
        elif self.process.stdout is not None and not self.process.stdout.closed:
            self.wait()
