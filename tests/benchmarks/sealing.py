"""Cost of the journal's encryption: tokens per second with it on and off."""

import tempfile
from pathlib import Path

from processes import answering, server
from throughput import FULL, alternate, speed
from workloads import WORKLOADS, Workload, find_directory

from whence_server.journal.sealing.key_file import add_master_key

NUM_STREAMS = (1, 16)


def measure(workload: Workload, runs: int, key_file: Path) -> None:
    """Compare two servers with default settings; one encrypts its journal."""
    directory, vocabulary = find_directory(workload), str(workload.vocabulary_size)
    with (
        server(directory, *workload.flags, "--journal-key", str(key_file)) as (_, sealed),
        server(directory, *workload.flags) as (_, clear),
        answering("load.py", sealed, vocabulary) as on,
        answering("load.py", clear, vocabulary) as off,
    ):
        for num_streams in NUM_STREAMS:
            with_keys, without, ratio = alternate(
                runs,
                lambda n=num_streams: speed(on, num_streams=n, detail=FULL),
                lambda n=num_streams: speed(off, num_streams=n, detail=FULL),
            )
            print(
                f"| {workload} | {num_streams} | {with_keys:,.0f} | {without:,.0f} | {ratio:.2f} |",
                flush=True,
            )


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads."""
    print("| workload | streams | journal encrypted, tokens/s | in clear | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as directory:
        key_file = Path(directory) / "master.key"
        add_master_key(key_file)
        for name in names:
            measure(WORKLOADS[name], runs, key_file)
