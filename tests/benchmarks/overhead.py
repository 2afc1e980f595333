"""Cost of the export for generations: tokens per second with it on and off."""

from processes import answering, server
from throughput import FULL, alternate, speed
from workloads import WORKLOADS, Workload, find_directory

NUM_STREAMS = (1, 16)


def measure(workload: Workload, runs: int) -> None:
    """Compare two servers with default settings (DECISIONS, eight candidates); one exports."""
    directory, vocabulary = find_directory(workload), str(workload.vocabulary_size)
    with (
        answering("collector.py", "discard") as collector,
        server(directory, *workload.flags, "--otlp-endpoint", collector.ready["endpoint"]) as (
            _,
            exporting,
        ),
        server(directory, *workload.flags) as (_, silent),
        answering("load.py", exporting, vocabulary) as on,
        answering("load.py", silent, vocabulary) as off,
    ):
        for num_streams in NUM_STREAMS:
            with_export, without, ratio = alternate(
                runs,
                lambda n=num_streams: speed(on, num_streams=n, detail=FULL),
                lambda n=num_streams: speed(off, num_streams=n, detail=FULL),
            )
            print(
                f"| {workload} | {num_streams} | {with_export:,.0f} | {without:,.0f} | "
                f"{ratio:.2f} |",
                flush=True,
            )


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads."""
    print("| workload | streams | export on, tokens/s | off | ratio |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in names:
        measure(WORKLOADS[name], runs)
