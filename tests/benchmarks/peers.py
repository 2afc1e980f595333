"""The real model beside its peers: tokens a second of whence and of the engines installed here.

The peers are transformers' `generate`, and from `build/backends` llama.cpp's server
(`llama-cpp/llama-server`, with the GGUF file that the real model was made of) and vLLM
(`vllm/bin/vllm`).
Each runs alone, with both cores, and samples with the same temperature and top-p, without a trace;
whence runs as shipped, with full trace. llama.cpp's file is quantised, and is compared as it is.
"""

import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from processes import answering, find_free_port, server
from workloads import (
    NUM_NEW_TOKENS,
    TEMPERATURE,
    TOP_P,
    WORKLOADS,
    Workload,
    find_directory,
    prompt,
)

from whence_server.demo.cache import find_cache_dir
from whence_server.demo.real_weights import ensure_gguf

BACKENDS = Path(__file__).parents[2] / "build" / "backends"
LLAMA = BACKENDS / "llama-cpp" / "llama-server"
VLLM = BACKENDS / "vllm" / "bin" / "vllm"
NUM_STREAMS = (1, 8)
START_S = 600


def run(runs: int, names: list[str]) -> None:
    """Print the table of the real model, and a line for each peer that is absent."""
    real = [WORKLOADS[name] for name in names if WORKLOADS[name].is_real]
    if not real:
        return
    columns = " | ".join(f"{n} stream{'s' if n > 1 else ''}, tokens/s" for n in NUM_STREAMS)
    print(f"| engine | weights | {columns} |\n| --- | --- |" + " ---: |" * len(NUM_STREAMS))
    for workload in real:
        show("whence, full trace", workload.dtype, measure_whence(workload, runs))
        show("transformers", workload.dtype, measure_transformers(workload, runs))
        if VLLM.exists():
            show("vLLM", workload.dtype, measure_vllm(workload, runs))
    if LLAMA.exists():
        gguf = ensure_gguf(find_cache_dir())
        show("llama.cpp", gguf.name, measure_llama(real[0], gguf, runs))
    else:
        print(f"llama.cpp is absent: {LLAMA}")
    if not VLLM.exists():
        print(f"vLLM is absent: {VLLM}")


def show(engine: str, weights: str, speeds: list[float]) -> None:
    print(f"| {engine} | {weights} | {' | '.join(f'{s:,.1f}' for s in speeds)} |", flush=True)


def measure_whence(workload: Workload, runs: int) -> list[float]:
    with (
        answering("collector.py") as collector,
        server(
            find_directory(workload),
            *workload.flags,
            "--otlp-endpoint",
            collector.ready["endpoint"],
        ) as (_, target),
        answering("load.py", target, str(workload.vocabulary_size)) as load,
    ):
        return [
            _repeat(runs, lambda n=n: _rate(load.ask(num_streams=n, num_new_tokens=NUM_NEW_TOKENS)))
            for n in NUM_STREAMS
        ]


def measure_transformers(workload: Workload, runs: int) -> list[float]:
    with answering("peer.py", str(find_directory(workload)), workload.dtype) as peer:
        return [
            _repeat(
                runs,
                lambda n=n: _rate(
                    peer.ask(
                        num_streams=n,
                        num_new_tokens=NUM_NEW_TOKENS,
                        mode="stream" if n == 1 else "static",
                    )
                ),
            )
            for n in NUM_STREAMS
        ]


def measure_llama(workload: Workload, gguf: Path, runs: int) -> list[float]:
    port = find_free_port()
    command = [str(LLAMA), "--model", str(gguf), "--port", str(port), "--threads", "2"]
    command += ["--parallel", str(max(NUM_STREAMS)), "--ctx-size", "4096"]
    # Its own defaults would add top-k and min-p.
    asked = {
        "n_predict": NUM_NEW_TOKENS,
        "ignore_eos": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
        "samplers": ["temperature", "top_p"],
        "cache_prompt": False,
    }
    with _serving(command, f"http://127.0.0.1:{port}/health"):
        return _load(f"http://127.0.0.1:{port}/completion", asked, workload, runs)


def measure_vllm(workload: Workload, runs: int) -> list[float]:
    port = find_free_port()
    command = [str(VLLM), "serve", str(find_directory(workload)), "--port", str(port)]
    command += ["--dtype", workload.dtype, "--max-model-len", "2048", "--served-model-name", "R"]
    asked = {
        "model": "R",
        "max_tokens": NUM_NEW_TOKENS,
        "ignore_eos": True,
        "temperature": TEMPERATURE,
        "top_p": TOP_P,
    }
    with _serving(command, f"http://127.0.0.1:{port}/health"):
        return _load(f"http://127.0.0.1:{port}/v1/completions", asked, workload, runs)


def _load(url: str, asked: dict[str, Any], workload: Workload, runs: int) -> list[float]:
    """Return the tokens per second of each number of streams, by requests for token ids."""

    def ask(index: int) -> None:
        body = json.dumps(
            asked | {"prompt": prompt(index, workload.vocabulary_size), "seed": index}
        )
        request = urllib.request.Request(
            url, body.encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=START_S) as answer:
            answer.read()

    def measure(num_streams: int) -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(num_streams) as pool:
            list(pool.map(ask, range(num_streams)))
        return num_streams * NUM_NEW_TOKENS / (time.perf_counter() - started)

    return [_repeat(runs, lambda n=n: measure(n)) for n in NUM_STREAMS]


@contextmanager
def _serving(command: list[str], health: str) -> Iterator[None]:
    """Run a server until the block is left; begin when it is healthy."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while not _is_healthy(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} did not become ready")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait()


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _rate(answer: dict[str, Any]) -> float:
    return float(answer["tokens"] / answer["seconds"])


def _repeat(runs: int, measure: Any) -> float:
    """Return the median of the runs, after one that warms up."""
    if runs > 1:
        measure()
    return median(measure() for _ in range(runs))
