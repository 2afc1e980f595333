"""Processor time of each process while sixteen streams are served, by what is recorded.

Where cores are few, processor time of the front, the client and the collector is taken from the
engine. It is also steadier than tokens per second on a machine that others use.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import psutil
from processes import Answering, answering, server
from throughput import BARE, FULL
from workloads import NUM_NEW_TOKENS, WORKLOADS, Workload, find_directory

NUM_STREAMS = 16
QUIET_S = 1.0
"""Time without a new span after which the export of a run has ended."""
COLUMNS = ("engine", "front", "client", "collector")


class Form(NamedTuple):
    """Amount that is recorded and exported, and the processes that do it."""

    name: str
    detail: str
    load: Answering
    processes: dict[str, psutil.Process]
    wait: Callable[[], None]
    """Wait until the spans of a run have been exported."""


class Spent(NamedTuple):
    """Result of a run.

    Attributes:
        us: microseconds of processor time a token, by process.
        tokens_a_second: of all streams.
    """

    us: dict[str, float]
    tokens_a_second: float


def find_processes(front: Any, load: Answering) -> dict[str, psutil.Process]:
    """Return the processes of a server and its client, by their columns."""
    own = psutil.Process(front.pid)
    engine = max(own.children(), key=lambda child: child.memory_info().rss)
    return {"engine": engine, "front": own, "client": psutil.Process(load.pid)}


def measure(form: Form) -> Spent:
    """Serve sixteen streams once."""
    before = _read(form.processes)
    answer = form.load.ask(
        num_streams=NUM_STREAMS, num_new_tokens=NUM_NEW_TOKENS, detail=form.detail
    )
    form.wait()
    after = _read(form.processes)
    num_tokens = answer["tokens"]
    us = {name: (after[name] - before[name]) / num_tokens * 1e6 for name in after}
    return Spent(us, num_tokens / answer["seconds"])


def _read(processes: dict[str, psutil.Process]) -> dict[str, float]:
    times = {name: process.cpu_times() for name, process in processes.items()}
    return {name: spent.user + spent.system for name, spent in times.items()}


def wait_for_silence(collector: Answering) -> None:
    """Wait until the collector gets no more spans."""
    before, now = -1, 0
    while now != before:
        time.sleep(QUIET_S)
        before, now = now, sum(collector.ask().values())


def compare(workload: Workload, runs: int) -> None:
    """Print the rows of a workload: medians of runs in turns."""
    directory, vocabulary = find_directory(workload), str(workload.vocabulary_size)
    with (
        answering("collector.py", "discard") as collector,
        server(directory, *workload.flags, "--otlp-endpoint", collector.ready["endpoint"]) as (
            exporting,
            target,
        ),
        server(directory, *workload.flags, "--step-spans", "off") as (silent, silent_target),
        answering("load.py", target, vocabulary) as full,
        answering("load.py", silent_target, vocabulary) as bare,
    ):
        of_bare = find_processes(silent, bare)
        of_full = find_processes(exporting, full)
        of_full["collector"] = psutil.Process(collector.pid)
        forms = [
            Form("tokens only", BARE, bare, of_bare, lambda: None),
            Form("full trace, no spans", FULL, bare, of_bare, lambda: None),
            Form(
                "full trace and its spans", FULL, full, of_full, lambda: wait_for_silence(collector)
            ),
        ]
        found: dict[str, list[Spent]] = {form.name: [] for form in forms}
        for i in range(runs + 1):
            for form in forms:
                spent = measure(form)
                if i:  # the first run warms up
                    found[form.name].append(spent)
    for name, runs_of in found.items():
        us = [median(one.us.get(column, 0.0) for one in runs_of) for column in COLUMNS]
        values = " | ".join(f"{value:,.0f}" for value in (*us, sum(us)))
        speed = median(one.tokens_a_second for one in runs_of)
        print(f"| {workload} | {name} | {values} | {speed:,.0f} |", flush=True)


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads."""
    print(
        f"| workload | {NUM_STREAMS} streams, us a token | {' | '.join(COLUMNS)} | all | tokens/s |"
    )
    print("| --- | --- |" + " ---: |" * 6)
    for name in names:
        compare(WORKLOADS[name], runs)
