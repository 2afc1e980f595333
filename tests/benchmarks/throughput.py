"""Tokens a second, traced and served, against untraced transformers: ratios by alternation."""

from collections.abc import Callable
from statistics import median

from processes import Answering, answering, server
from workloads import NUM_NEW_TOKENS, WORKLOADS, Workload, find_directory

Speed = Callable[[], float]
FULL, BARE = "decisions", "tokens"


def speed(process: Answering, **command: object) -> float:
    answer = process.ask(num_new_tokens=NUM_NEW_TOKENS, **command)
    return answer["tokens"] / answer["seconds"]


def alternate(runs: int, ours: Speed, theirs: Speed) -> tuple[float, float, float]:
    """Return the medians of ours, theirs and their ratio, after a warm-up pair."""
    if runs > 1:
        ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(runs)]
    return (
        median(a for a, _ in pairs),
        median(b for _, b in pairs),
        median(a / b for a, b in pairs),
    )


def measure(workload: Workload, runs: int) -> list[tuple[str, float, float, float]]:
    """Return rows of (what, ours, theirs, ratio) in tokens per second."""
    directory = find_directory(workload)
    rows = []
    with (
        answering("collector.py") as collector,
        server(directory, *workload.flags, "--otlp-endpoint", collector.ready["endpoint"]) as (
            _,
            target,
        ),
        server(directory, *workload.flags, "--step-spans", "off") as (_, bare_target),
        answering("peer.py", str(directory), workload.dtype) as peer,
        answering("load.py", target, str(workload.vocabulary_size)) as load,
        answering("load.py", bare_target, str(workload.vocabulary_size)) as bare,
    ):
        comparisons = [
            ("1 stream, full trace / generate with a streamer", 1, peer, {"mode": "stream"}),
            ("16 streams, full trace / static batch of 16", 16, peer, {"mode": "static"}),
            ("16 streams, full trace / 16 sequential", 16, peer, {"mode": "sequential"}),
            ("16 streams, full trace / generate_batch of 16", 16, peer, {"mode": "continuous"}),
            ("1 stream, full trace / tokens only, no step spans", 1, bare, {"detail": BARE}),
            ("16 streams, full trace / tokens only, no step spans", 16, bare, {"detail": BARE}),
        ]
        for what, num_streams, other, command in comparisons:
            row = alternate(
                # Sixteen after each other take minutes, and the ratio is far from 1.
                1 if command.get("mode") in {"sequential", "continuous"} else runs,
                lambda n=num_streams: speed(load, num_streams=n, detail=FULL),
                lambda n=num_streams, o=other, c=command: speed(o, num_streams=n, **c),
            )
            rows.append((what, *row))
            print(
                f"| {workload} | {what} | {row[0]:,.0f} | {row[1]:,.0f} | {row[2]:.2f} |",
                flush=True,
            )
    return rows


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads."""
    print("| workload | compared | ours, tokens/s | theirs | ratio |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in names:
        measure(WORKLOADS[name], runs)
