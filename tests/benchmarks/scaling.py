"""Tokens per second with one stream to sixty-four, and memory of a token of context."""

from pathlib import Path
from statistics import median

import psutil
from processes import answering, server
from workloads import NUM_NEW_TOKENS, WORKLOADS, Workload, find_directory

NUM_STREAMS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT_TOKENS = 6_000


def run(runs: int, names: list[str], plot: Path | None) -> None:
    """Print a table, and draws it."""
    curves: dict[str, list[float]] = {}
    print("| workload | " + " | ".join(map(str, NUM_STREAMS)) + " | memory a token of context |")
    print("| --- |" + " ---: |" * (len(NUM_STREAMS) + 1))
    for name in names:
        workload = WORKLOADS[name]
        speeds, bytes_a_token = measure(workload, runs)
        curves[str(workload)] = speeds
        row = " | ".join(f"{speed:,.0f}" for speed in speeds)
        held = workload.keys_and_values_bytes
        print(
            f"| {workload} | {row} | {bytes_a_token / 1024:.1f} KiB "
            f"({bytes_a_token / held:.2f} times its keys and values) |",
            flush=True,
        )
    if plot is not None:
        draw(curves, plot)


def measure(workload: Workload, runs: int) -> tuple[list[float], float]:
    """Return the median tokens per second of each number of streams, and bytes of a token."""
    speeds = []
    with (
        answering("collector.py") as collector,
        server(
            find_directory(workload),
            *workload.flags,
            "--otlp-endpoint",
            collector.ready["endpoint"],
        ) as (
            process,
            target,
        ),
        answering("load.py", target, str(workload.vocabulary_size)) as load,
    ):
        for num_streams in NUM_STREAMS:
            found = []
            for _ in range(runs + (runs > 1)):
                answer = load.ask(num_streams=num_streams, num_new_tokens=NUM_NEW_TOKENS)
                found.append(answer["tokens"] / answer["seconds"])
            speeds.append(median(found[runs > 1 :]))
    with (
        server(find_directory(workload), *workload.flags) as (process, target),
        answering("load.py", target, str(workload.vocabulary_size)) as load,
    ):
        (engine,) = psutil.Process(process.pid).children()
        load.ask(num_streams=1, num_new_tokens=2)
        before = engine.memory_info().rss
        load.ask(num_streams=1, num_new_tokens=2, num_prompt_tokens=CONTEXT_TOKENS)
        return speeds, (engine.memory_info().rss - before) / CONTEXT_TOKENS


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Write the curves as SVG, both axes logarithmic."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for label, speeds in curves.items():
        axes.plot(NUM_STREAMS, speeds, marker="o", label=label)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="streams",
        ylabel="tokens a second, all streams",
        title="Traced throughput, two cores",
    )
    axes.set_xticks(NUM_STREAMS, [str(n) for n in NUM_STREAMS])
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, format="svg", metadata={"Date": None})
