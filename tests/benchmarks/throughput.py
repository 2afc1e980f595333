"""Tokens a second, traced and served, against untraced transformers: ratios by alternation."""

from collections.abc import Callable
from statistics import median

from processes import Answering, answering, server
from tables import print_columns
from workloads import NUM_NEW_TOKENS, WORKLOADS, Workload, find_directory

Speed = Callable[[], float]
FULL, BARE = "decisions", "tokens"
TRACED = "full trace / tokens only, no step spans"


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
            ("1 stream / `generate` with a streamer", 1, peer, {"mode": "stream"}),
            ("16 streams / static batch of 16", 16, peer, {"mode": "static"}),
            ("16 streams / 16 one after the other", 16, peer, {"mode": "sequential"}),
            ("16 streams / transformers' continuous batching", 16, peer, {"mode": "continuous"}),
            (f"{TRACED}; 1 stream", 1, bare, {"detail": BARE}),
            (f"{TRACED}; 16 streams", 16, bare, {"detail": BARE}),
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
    cells: dict[str, dict[str, str]] = {}
    for name in names:
        workload = WORKLOADS[name]
        for what, ours, theirs, ratio in measure(workload, runs):
            # Both sides of the last rows are whence.
            both = "" if what.startswith(TRACED) else f"{ours:,.0f} / {theirs:,.0f} "
            cell = f"{both}({ratio:.2f})" if both else f"{ratio:.2f}"
            cells.setdefault(what, {})[str(workload)] = cell
    print_columns("tokens/s, ours / theirs (ratio)", cells)
