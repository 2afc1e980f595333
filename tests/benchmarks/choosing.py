"""Processor time of a step after the forward pass, of sixteen sequences: what a full trace adds.

Each row asks for more than the one before, so that differences are the time of what was added. One
thread computes, so that processor time has no waiting of others in it.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch
from engine import options
from workloads import NUM_NEW_TOKENS, TEMPERATURE, TOP_P, WORKLOADS, Workload, prompt

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.domain.engine import Cost, StepMade, Turn
from whence_server.domain.steps import Decision, Step, Timing
from whence_server.engines.transformers.decoding import Chooser, Row
from whence_server.engines.transformers.loading import load
from whence_server.journal.codec import encode_step
from whence_server.processes import channel

NUM_STREAMS = 16
NUM_REPEATS = 30
COST = Cost(1_000_000_000, 60_000_000, 9_000_000, NUM_STREAMS)
FORMS = {
    "tokens only": TraceOptions(TraceDetail.TOKENS),
    "with ranks, entropies, effects and draws": TraceOptions(num_candidates=0),
    "with eight candidates too: a full trace": TraceOptions(),
}
Work = Callable[[], object]


class Parts(NamedTuple):
    """Microseconds a token of one form's parts.

    Attributes:
        choose: the choice of the token, and the numbers that explain it.
        send: the message, written by the engine.
        receive: the message, read by the front.
        encode: the record of the step as bytes.
    """

    choose: float
    send: float
    receive: float
    encode: float


def make_rows(trace: TraceOptions, vocabulary_size: int) -> list[Row]:
    """Return the rows of sixteen streams."""
    return [
        Row(
            Decoding(
                Strategy.SAMPLE,
                NUM_NEW_TOKENS,
                temperature=TEMPERATURE,
                top_p=TOP_P,
                ignore_eos=True,
                seed=i,
            ),
            trace,
            0,
            prompt(i, vocabulary_size),
        )
        for i in range(NUM_STREAMS)
    ]


def compute_logits(workload: Workload) -> torch.Tensor:
    """Return the logits of sixteen streams after their first tokens: [16, V]."""
    loaded = load(options(workload))
    runner = loaded.make_runner()
    with torch.inference_mode():
        for i in range(NUM_STREAMS):
            read = runner.start(prompt(i, workload.vocabulary_size))
            runner.prefill(read, read.num_left, all_logits=False)
            runner.join(read)
        return runner.decode(list(range(1, NUM_STREAMS + 1))).clone()


def list_work(chooser: Chooser, logits: torch.Tensor, rows: list[Row]) -> list[Work]:
    """Return a function for each of the parts."""
    decisions = [one for one in chooser.choose(logits, rows) if isinstance(one, Decision)]
    assert len(decisions) == len(rows)
    steps = [StepMade(f"{i:036}", 0, 5, one, 37, None) for i, one in enumerate(decisions)]
    turn = Turn(COST, steps=steps)
    frame = channel.encode(turn)[channel.HEADER.size :]
    timing = Timing(1_000_000_000, 60_000_000, 9_000_000, NUM_STREAMS, 37)
    return [
        lambda: chooser.choose(logits, rows),
        lambda: channel.encode(turn),
        lambda: channel.decode(frame),
        lambda: [encode_step(Step(0, 5, one, " word", 25, 30, timing)) for one in decisions],
    ]


def measure_all(workload: Workload, runs: int) -> dict[str, Parts]:
    """Measure all forms in turns; the least of the runs counts."""
    logits = compute_logits(workload)
    torch.set_num_threads(1)
    chooser = Chooser(workload.vocabulary_size, logits.device)
    work = {
        name: list_work(chooser, logits, make_rows(trace, workload.vocabulary_size))
        for name, trace in FORMS.items()
    }
    found: dict[str, list[list[float]]] = {name: [] for name in FORMS}
    for _ in range(runs):
        for name, parts in work.items():
            found[name].append([time_one(part) for part in parts])
    return {
        name: Parts(*(min(column) for column in zip(*rows, strict=True)))
        for name, rows in found.items()
    }


def time_one(part: Work) -> float:
    """Return the median microseconds of processor time that a part takes for each token."""
    spent = []
    for _ in range(NUM_REPEATS):
        began = time.thread_time()
        part()
        spent.append(time.thread_time() - began)
    return median(spent) / NUM_STREAMS * 1e6


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads."""
    print(
        "| workload | us a token of processor time, 16 streams | choose | send | receive "
        "| encode the step | all |"
    )
    print("| --- | --- |" + " ---: |" * 5)
    for name in names:
        for form, parts in measure_all(WORKLOADS[name], runs).items():
            values = " | ".join(f"{value:,.1f}" for value in (*parts, sum(parts)))
            print(f"| {WORKLOADS[name]} | {form} | {values} |", flush=True)
