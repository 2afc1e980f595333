"""A short request's first token while fifteen streams decode and a long prompt is being read."""

from statistics import median

from processes import answering, server
from tables import print_columns
from workloads import WORKLOADS, find_directory

NUM_STREAMS = 15
LONG_PROMPT_TOKENS = 4_000


def run(names: list[str]) -> None:
    """Print, for each workload, the short request's wait and the streams' longest pause."""
    cells: dict[str, dict[str, str]] = {}
    for name in names:
        workload = WORKLOADS[name]
        with (
            server(find_directory(workload), *workload.flags) as (_, target),
            answering("contention.py", target, str(workload.vocabulary_size)) as load,
        ):
            command = {"num_streams": NUM_STREAMS, "long_prompt_tokens": LONG_PROMPT_TOKENS}
            load.ask(**command)
            found = load.ask(**command)
        step_s = median(found["gaps_s"])
        print(
            f"{workload}: while {NUM_STREAMS} streams decode ({step_s * 1e3:.0f} ms a step) and "
            f"{LONG_PROMPT_TOKENS:,} prompt tokens are read in {found['long_s']:.1f} s, a short "
            f"request's first token comes after {found['short_s'] * 1e3:.0f} ms, "
            f"{found['short_s'] / found['turn_s']:.1f} turns of {found['turn_s'] * 1e3:.0f} ms; "
            f"the longest pause of a stream is {max(found['gaps_s']) * 1e3:.0f} ms",
            flush=True,
        )
        for what, seconds in (
            ("a short request's first token comes after", found["short_s"]),
            ("the longest pause of a stream", max(found["gaps_s"])),
        ):
            cells.setdefault(what, {})[str(workload)] = f"{seconds * 1e3:,.0f} ms"
    print_columns(
        f"while {NUM_STREAMS} streams decode and {LONG_PROMPT_TOKENS:,} prompt tokens are read",
        cells,
    )
