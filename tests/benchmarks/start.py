"""Start of a server on the real model: the first in a data directory, and later ones."""

import os
import subprocess
import sys
import tempfile
import time
from statistics import median
from typing import NamedTuple

import psutil

from whence_server.demo.real_model import ensure_real_model


class Start(NamedTuple):
    """One start: seconds until the server is ready, and its processes' processor time by then."""

    ready_s: float
    processor_s: float


def start(data_dir: str, dtype: str) -> Start:
    """Start a server, and end it when it is ready."""
    command = (sys.executable, "-m", "whence_server", "serve", "--model", str(ensure_real_model()))
    flags = ("--data-dir", data_dir, "--listen", "127.0.0.1:0", "--dtype", dtype)
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, *flags, "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    ready_s = time.perf_counter() - began
    if not line.startswith("serving "):
        raise SystemExit(f"the server ended with {process.wait()}")
    front = psutil.Process(process.pid)
    processes = [front, *front.children(recursive=True)]
    processor_s = sum(sum(one.cpu_times()[:2]) for one in processes)
    process.terminate()
    process.wait()
    return Start(ready_s, processor_s)


def run(runs: int) -> None:
    """Print the times of the first start and the medians of later ones."""
    for dtype in ("float32", "bfloat16"):
        with tempfile.TemporaryDirectory(prefix="whence-bench-") as data_dir:
            first = start(data_dir, dtype)
            later = [start(data_dir, dtype) for _ in range(runs)]
        print(
            f"real model, {dtype}: ready after {first.ready_s:.1f} s at the first start "
            f"({first.processor_s:.1f} s of processor time), and {median(s[0] for s in later):.1f} "
            f"s at later ones ({median(s[1] for s in later):.1f} s; least "
            f"{min(s[0] for s in later):.1f} s)",
            flush=True,
        )
