"""Cost of INTERNALS over DECISIONS at 512 tokens of context: time, bytes, memory.

The engine's step: two loops over one model take turns, a step each, so that whatever else the
machine does falls on both. Served, by a server as shipped that exports its spans: runs alternate.
Memory: the peak of a process that has the engine alone.
"""

import os
import time
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
from engine import options
from processes import Answering, answering, server
from workloads import DEVICE, TEMPERATURE, TOP_P, WORKLOADS, Workload, find_directory, prompt

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.engine import Admit, Turn
from whence_server.domain.steps import Step, Timing
from whence_server.engines.transformers.decoding import Chooser
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.engines.transformers.loop import EngineLoop
from whence_server.engines.transformers.scheduler import Scheduler
from whence_server.journal.codec import encode_step

CONTEXT_TOKENS = 512
"""Context length in the middle of the measurement."""
STREAMS = (1, 8)
DETAILS = (TraceDetail.DECISIONS, TraceDetail.INTERNALS)
STEPS_A_RUN = 32
WARM_UP_STEPS = 4
SERVED_TOKENS = 64
MEMORY_CONTEXTS = (1_024, 2_048, 4_096)
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Setting of glibc to return freed memory at once, so that peaks are memory in use."""


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads, a row as soon as it is known."""
    print(f"| workload, {CONTEXT_TOKENS} tokens of context | measured | DECISIONS | INTERNALS | |")
    print("| --- | --- | ---: | ---: | --- |", flush=True)
    for name in names:
        engine_steps(WORKLOADS[name], runs)
        served(WORKLOADS[name], runs)
        if DEVICE == "cpu":  # it is the process's that is measured
            memory(WORKLOADS[name])


def row(workload: Workload, measured: str, plain: str, internals: str, compared: str) -> None:
    print(f"| {workload} | {measured} | {plain} | {internals} | {compared} |", flush=True)


def more_time(ratios: list[float]) -> str:
    """Format the median of the ratios of times, and their quartiles; of few ratios the range."""
    low, *_, high = quantiles(ratios) if len(ratios) > 4 else (min(ratios), max(ratios))
    return f"time {median(ratios) - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})"


@dataclass
class Side:
    """One loop at one level of detail, and its turns and times."""

    loop: EngineLoop
    turns: list[Turn]
    seconds: list[float] = field(default_factory=list)


def engine_steps(workload: Workload, runs: int) -> None:
    """Print what a step costs in the engine, and its record's bytes."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loaded = load(options(workload))
    for num_streams in STREAMS:
        plain, internals = take_turns(loaded, workload, num_streams, runs * STEPS_A_RUN)
        # Two steps at a time: in one of them either side came second.
        ratios = [
            sum(internals.seconds[i : i + 2]) / sum(plain.seconds[i : i + 2])
            for i in range(0, len(plain.seconds), 2)
        ]
        row(
            workload,
            f"the engine's step, sequences: {num_streams}",
            f"{median(plain.seconds) * 1e3:.2f} ms",
            f"{median(internals.seconds) * 1e3:.2f} ms",
            more_time(ratios),
        )
    plain_bytes, internals_bytes = record_bytes(plain), record_bytes(internals)
    row(
        workload,
        "a step's record",
        f"{plain_bytes:.0f} bytes",
        f"{internals_bytes:.0f} bytes",
        f"{internals_bytes - plain_bytes:+.0f} bytes",
    )


def take_turns(
    loaded: LoadedModel, workload: Workload, num_streams: int, num_steps: int
) -> tuple[Side, Side]:
    """Let two loops over one model take a step in turns."""
    plain, internals = (
        start_loop(loaded, workload, detail, num_streams, num_steps) for detail in DETAILS
    )
    for step in range(WARM_UP_STEPS + num_steps):
        # Alternating, because the second one finds the weights in the caches.
        for one in (plain, internals) if step % 2 else (internals, plain):
            started = time.perf_counter()
            one.loop.run_turn()
            one.seconds.append(time.perf_counter() - started)
    for one in (plain, internals):
        del one.seconds[:WARM_UP_STEPS]
    return plain, internals


def start_loop(
    loaded: LoadedModel, workload: Workload, detail: TraceDetail, num_streams: int, num_steps: int
) -> Side:
    """Return a loop whose streams have all begun, with `num_steps` steps left."""
    turns: list[Turn] = []
    loop = EngineLoop(
        loaded.make_runner(),
        Chooser(workload.vocabulary_size, loaded.model.device),
        Scheduler(64, 131_072, 512),
        loaded.info.max_context_length,
        turns.append,
    )
    for i in range(num_streams):
        decoding = Decoding(
            Strategy.SAMPLE,
            # Those that begin first have made some tokens by the time that the last one begins.
            WARM_UP_STEPS + num_steps + num_streams + 1,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            ignore_eos=True,
            seed=i,
        )
        ids = prompt(i, workload.vocabulary_size, CONTEXT_TOKENS - num_steps // 2)
        loop.handle(Admit(str(i), ids, decoding, TraceOptions(detail)))
    while sum(len(turn.prefilled) for turn in turns) < num_streams:
        loop.run_turn()
    turns.clear()
    return Side(loop, turns)


def record_bytes(measured: Side) -> float:
    """Return the mean size of a step in the journal, without its text."""
    steps = [made for turn in measured.turns for made in turn.steps]
    timing = Timing(10**9, 8_000_000, 900_000, len(steps), CONTEXT_TOKENS)
    sizes = [len(encode_step(Step(0, 9, made.decision, "", 0, 0, timing))) for made in steps]
    return sum(sizes) / len(sizes)


def memory(workload: Workload) -> None:
    """Print by how much one context lifts the peak of a process that has the engine alone."""
    norms = 4 * workload.num_layers * workload.num_heads
    keys_and_values = workload.keys_and_values_bytes
    with answering("peak.py", workload.name, environment=GIVES_BACK) as engine:
        for num_tokens in MEMORY_CONTEXTS:
            plain, internals = (
                engine.ask(detail=detail.name, num_tokens=num_tokens)["bytes"] / num_tokens
                for detail in DETAILS
            )
            row(
                workload,
                f"peak memory a token, of {num_tokens:,}",
                f"{plain:,.0f} bytes ({plain / keys_and_values:.2f} times keys and values)",
                f"{internals:,.0f} bytes ({internals / keys_and_values:.2f} times)",
                f"{internals - plain:+,.0f} bytes, norms {norms} of them; keys and values are "
                f"{keys_and_values:,}",
            )


def served(workload: Workload, runs: int) -> None:
    """Print tokens a second, with front, journal, export of step spans, and client."""
    with (
        answering("collector.py", "discard") as collector,
        server(
            find_directory(workload),
            *workload.flags,
            "--otlp-endpoint",
            collector.ready["endpoint"],
        ) as (
            _,
            target,
        ),
        answering("load.py", target, str(workload.vocabulary_size)) as load_process,
    ):
        for num_streams in STREAMS:
            for detail in DETAILS:
                speed(load_process, detail, num_streams, 32)  # whatever is made once, is made
            pairs = []
            for _ in range(runs):
                plain, internals = (
                    speed(load_process, detail, num_streams, CONTEXT_TOKENS) for detail in DETAILS
                )
                pairs.append((plain, internals))
            row(
                workload,
                f"served with spans, streams: {num_streams}",
                f"{median(plain for plain, _ in pairs):,.0f} tokens/s",
                f"{median(internals for _, internals in pairs):,.0f} tokens/s",
                more_time([plain / internals for plain, internals in pairs]),
            )


def speed(load_process: Answering, detail: TraceDetail, num_streams: int, context: int) -> float:
    """Return the tokens per second while all streams decode, around a context length."""
    answer = load_process.ask(
        num_streams=num_streams,
        num_new_tokens=SERVED_TOKENS + num_streams,
        num_prompt_tokens=max(context - SERVED_TOKENS // 2, 1),
        detail=detail.name.lower(),
    )
    return answer["together"]["tokens"] / answer["together"]["seconds"]
