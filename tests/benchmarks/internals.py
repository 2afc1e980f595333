"""What INTERNALS costs over DECISIONS at 512 tokens of context: time, memory, bytes.

Two loops over one model take turns, a step each, so that whatever else the machine does falls on
both. Served, with front, journal and client, runs alternate.
"""

import os
import time
from dataclasses import dataclass, field
from statistics import median

import psutil
import torch
from engine import options
from processes import Answering, answering, server
from workloads import (
    NUM_NEW_TOKENS,
    TEMPERATURE,
    TOP_P,
    WORKLOADS,
    Workload,
    model_directory,
    prompt,
)

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.steps import Step, Timing
from whence_server.engine.decoding import Chooser
from whence_server.engine.loading import LoadedModel, load
from whence_server.engine.loop import EngineLoop
from whence_server.engine.messages import Admit, Turn
from whence_server.engine.scheduler import Scheduler
from whence_server.journal.codec import encode_step

CONTEXT_TOKENS = 512
"""In the middle of what is measured."""
STREAMS = (1, 8)
DETAILS = (TraceDetail.DECISIONS, TraceDetail.INTERNALS)
MEMORY_CONTEXTS = (1_024, 2_048, 4_096)


@dataclass
class Side:
    """One loop, at one level of detail, and what became of it."""

    loop: EngineLoop
    seconds: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


def side(loaded: LoadedModel, detail: TraceDetail, num_streams: int, vocabulary_size: int) -> Side:
    """A loop whose streams have all begun."""
    turns: list[Turn] = []
    loop = EngineLoop(
        loaded.runner(),
        Chooser(vocabulary_size, loaded.model.device),
        Scheduler(64, 131_072, 512),
        loaded.info.max_context_length,
        turns.append,
    )
    num_prompt_tokens = CONTEXT_TOKENS - NUM_NEW_TOKENS // 2
    # Those that begin first have made some tokens by the time that the last one begins.
    for i in range(num_streams):
        decoding = Decoding(
            Strategy.SAMPLE,
            NUM_NEW_TOKENS + num_streams + 1,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            ignore_eos=True,
            seed=i,
        )
        ids = prompt(i, vocabulary_size, num_prompt_tokens)
        loop.handle(Admit(str(i), ids, decoding, TraceOptions(detail)))
    while sum(len(turn.prefilled) for turn in turns) < num_streams:
        loop.turn()
    turns.clear()
    return Side(loop, turns=turns)


def compare(loaded: LoadedModel, num_streams: int, vocabulary_size: int) -> tuple[Side, Side]:
    """Lets both sides take a step in turns."""
    sides = [side(loaded, detail, num_streams, vocabulary_size) for detail in DETAILS]
    for step in range(NUM_NEW_TOKENS):
        # Whoever comes second finds the weights in the caches.
        for one in sides if step % 2 else reversed(sides):
            started = time.perf_counter()
            one.loop.turn()
            one.seconds.append(time.perf_counter() - started)
    return sides[0], sides[1]


def in_process(workload: Workload, runs: int) -> None:
    """Prints what a step costs in the engine, and its record's bytes."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    loaded = load(options(workload))
    for num_streams in STREAMS:
        ratios, sizes, times = [], [], []
        for run in range(runs + 1):
            plain, inside = compare(loaded, num_streams, workload.vocabulary_size)
            if run:
                ratios.append(median(inside.seconds) / median(plain.seconds))
                times.append(median(plain.seconds))
                sizes = [record_bytes(each) for each in (plain, inside)]
        print(
            f"| {workload}, {num_streams} sequences | the engine's step | "
            f"{median(times) * 1e3:.2f} ms | {median(ratios) - 1:+.1%} | "
            f"{sizes[0]:.0f} and {sizes[1]:.0f} bytes |",
            flush=True,
        )


def record_bytes(measured: Side) -> float:
    """Of a step, as the journal keeps it, without its text."""
    steps = [made for turn in measured.turns for made in turn.steps]
    timing = Timing(10**9, 8_000_000, 900_000, len(steps), CONTEXT_TOKENS)
    sizes = [len(encode_step(Step(0, 9, made.decision, "", 0, 0, timing))) for made in steps]
    return sum(sizes) / len(sizes)


def served(workload: Workload, runs: int) -> None:
    """Prints what it costs with front, journal and client, from the first token on."""
    with (
        server(model_directory(workload), "--step-spans", "off") as (_, target),
        answering("load.py", target, str(workload.vocabulary_size)) as process,
    ):
        for num_streams in STREAMS:
            pairs = []
            for run in range(runs + 1):
                pair = [seconds_a_token(process, num_streams, detail.name) for detail in DETAILS]
                if run:
                    pairs.append(pair)
            print(
                f"| {workload}, {num_streams} streams | served | "
                f"{median(plain for plain, _ in pairs) * 1e3:.2f} ms | "
                f"{median(inside / plain for plain, inside in pairs) - 1:+.1%} | |",
                flush=True,
            )


def seconds_a_token(process: Answering, num_streams: int, detail: str) -> float:
    answer = process.ask(
        num_streams=num_streams,
        num_new_tokens=NUM_NEW_TOKENS,
        num_prompt_tokens=CONTEXT_TOKENS - NUM_NEW_TOKENS // 2,
        detail=detail.lower(),
    )
    return (answer["seconds"] - max(answer["first_s"])) / NUM_NEW_TOKENS


def memory(workload: Workload) -> None:
    """Prints how much an engine grows by one long context, with and without."""
    rows = []
    for num_tokens in MEMORY_CONTEXTS:
        grown = [engine_bytes(workload, num_tokens, detail.name) for detail in DETAILS]
        rows.append(
            f"{num_tokens:,} tokens {grown[0] / 2**20:.1f} and {grown[1] / 2**20:.1f} MiB "
            f"({(grown[1] - grown[0]) / num_tokens:+.0f} bytes a token)"
        )
    norms = 4 * workload.num_layers * workload.num_heads
    print(f"{workload}: {'; '.join(rows)}; norms alone: {norms} bytes a token", flush=True)


def engine_bytes(workload: Workload, num_tokens: int, detail: str) -> int:
    with (
        server(model_directory(workload), "--step-spans", "off") as (process, target),
        answering("load.py", target, str(workload.vocabulary_size)) as load_process,
    ):
        (engine,) = psutil.Process(process.pid).children()
        command = {"num_streams": 1, "num_new_tokens": 4, "detail": detail.lower()}
        load_process.ask(**command)
        before = engine.memory_info().rss
        load_process.ask(**command, num_prompt_tokens=num_tokens)
        return int(engine.memory_info().rss - before)


def run(runs: int, names: list[str]) -> None:
    """Prints the table for the named workloads."""
    print(f"| workload, {CONTEXT_TOKENS} tokens of context | measured | DECISIONS | INTERNALS | |")
    print("| --- | --- | ---: | ---: | --- |")
    for name in names:
        in_process(WORKLOADS[name], runs)
        served(WORKLOADS[name], runs)
    print("\nthe engine's growth by one context, DECISIONS and INTERNALS:")
    for name in names:
        memory(WORKLOADS[name])
