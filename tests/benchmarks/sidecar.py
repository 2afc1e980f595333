"""whence before a real llama.cpp server, against the same server asked directly.

Throughput, delay of the first token, processor time; then whence's own engine over HTTP against
gRPC, and the memory of idle streams. `make llama-cpp` compiles the server first.
"""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import front
import psutil
from processes import Answering, answering, find_free_port, serving
from throughput import alternate, speed
from workloads import NUM_NEW_TOKENS

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from upstream_servers import run_llama_cpp

NUM_SLOTS = 16
NUM_LOGPROBS = 8
VOCABULARY_SIZE = 49_152
PAIRS_OF_FIRST_TOKENS = 40
DIRECT = {"ignore_eos": True, "min_p": 0.0, "typical_p": 1.0}
"""Fields of llama.cpp by which it samples as whence asks it to."""


def run(runs: int, names: list[str]) -> None:
    """Print the figures of a llama.cpp behind whence, and those of whence's own engine."""
    with (
        tempfile.TemporaryDirectory(prefix="whence-bench-") as directory,
        _start(Path(directory)) as (url, process, http_url, target),
    ):
        vocabulary = str(VOCABULARY_SIZE)
        with (
            answering("http_load.py", url, vocabulary) as direct,
            answering("http_load.py", http_url, vocabulary) as over_http,
            answering("load.py", target, vocabulary) as over_grpc,
        ):
            compare_throughput(runs, direct, over_http, over_grpc, process)
            compare_first_tokens(direct, over_http, over_grpc)
    print()
    front.run(runs, names)


@contextmanager
def _start(directory: Path) -> Iterator[tuple[str, psutil.Process, str, str]]:
    """Run both servers; yield llama.cpp's URL, whence's process, its URL and its target."""
    port = find_free_port()
    with run_llama_cpp(directory / "llama-cpp", num_slots=NUM_SLOTS, num_threads=2) as url:
        flags = ("--upstream", f"{url}/v1", "--http-listen", f"127.0.0.1:{port}")
        with serving(*flags, "--model-name", "bench") as (process, target):
            yield url, psutil.Process(process.pid), f"http://127.0.0.1:{port}", target


def compare_throughput(
    runs: int,
    direct: Answering,
    over_http: Answering,
    over_grpc: Answering,
    process: psutil.Process,
) -> None:
    """Print rows of tokens a second, and whence's processor time for a token."""
    print("| whence before llama.cpp / llama.cpp | whence | llama.cpp | ratio | CPU a token |")
    print("| --- | ---: | ---: | ---: | ---: |")
    both, without = {"num_logprobs": NUM_LOGPROBS}, {}
    for num_streams in (1, 16):
        for what, load, ours, theirs in (
            ("over HTTP, 8 logprobs on both sides", over_http, both, both),
            ("over HTTP, 8 logprobs / none", over_http, both, without),
            ("over gRPC, 8 candidates / 8 logprobs", over_grpc, {}, both),
        ):
            seconds: list[float] = []

            def measure(
                load: Answering = load,
                command: dict[str, int] = ours,
                num_streams: int = num_streams,
                seconds: list[float] = seconds,
            ) -> float:
                before = process.cpu_times()
                tokens_a_second = speed(load, num_streams=num_streams, **command)
                after = process.cpu_times()
                seconds.append(after.user + after.system - before.user - before.system)
                return tokens_a_second

            row = alternate(
                runs,
                measure,
                lambda n=num_streams, c=theirs: speed(direct, num_streams=n, extra=DIRECT, **c),
            )
            us = median(seconds) / (num_streams * NUM_NEW_TOKENS) * 1e6
            print(
                f"| {num_streams} streams {what}, tokens/s | {row[0]:,.0f} | {row[1]:,.0f} | "
                f"{row[2]:.2f} | {us:,.0f} us |",
                flush=True,
            )


def compare_first_tokens(direct: Answering, over_http: Answering, over_grpc: Answering) -> None:
    """Print the delays of one stream's first token through whence and without it."""
    both = {"num_streams": 1, "num_new_tokens": 2}
    with_logprobs = both | {"num_logprobs": NUM_LOGPROBS}
    columns: list[list[float]] = [[], [], []]
    for _ in range(PAIRS_OF_FIRST_TOKENS):
        answers = (
            direct.ask(**with_logprobs, extra=DIRECT),
            over_http.ask(**with_logprobs),
            over_grpc.ask(**both),
        )
        for column, answer in zip(columns, answers, strict=True):
            column.append(answer["first_s"][0] * 1e3)
    straight, http, grpc = columns
    for name, column in (("HTTP", http), ("gRPC", grpc)):
        added = median(ours - theirs for ours, theirs in zip(column, straight, strict=True))
        print(
            f"first token over {name}: {median(column):.1f} ms, from llama.cpp "
            f"{median(straight):.1f} ms; median of the difference {added:.1f} ms"
        )
