"""Time to ready and to the first token, and the front's memory."""

import time

import psutil
from processes import answering, server
from tables import print_columns
from workloads import WORKLOADS, find_directory


def run(names: list[str]) -> None:
    """Print a line for each workload, and the table."""
    cells: dict[str, dict[str, str]] = {}
    for name in names:
        workload = WORKLOADS[name]
        directory = find_directory(workload)
        started = time.perf_counter()
        with server(directory, *workload.flags) as (process, target):
            ready = time.perf_counter() - started
            with answering("load.py", target, str(workload.vocabulary_size)) as load:
                load.ask(num_streams=1, num_new_tokens=8)
                one = load.ask(num_streams=1, num_new_tokens=64)["first_s"][0]
                sixteen = load.ask(num_streams=16, num_new_tokens=64)["first_s"]
                front = psutil.Process(process.pid).memory_info().rss / 2**20
            print(
                f"{workload}: ready after {ready:.1f} s; first token after {one * 1e3:.0f} ms "
                f"(one stream), {sixteen[8] * 1e3:.0f} ms median and {sixteen[-1] * 1e3:.0f} ms "
                f"last (sixteen at once); front {front:.0f} MiB",
                flush=True,
            )
        for what, cell in (
            ("ready after", f"{ready:.1f} s"),
            ("first token, one stream", f"{one * 1e3:,.0f} ms"),
            ("first token, sixteen at once, median", f"{sixteen[8] * 1e3:,.0f} ms"),
            ("front process", f"{front:.0f} MiB"),
        ):
            cells.setdefault(what, {})[str(workload)] = cell
    print_columns("start, first token, memory", cells)
