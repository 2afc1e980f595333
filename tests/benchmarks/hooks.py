"""Cost of `record_generate`: `generate` with it over `generate` without, alternating.

The server that records shares the cores. The second ratio is that of the hook alone: nothing
answers at its target, and the record stays in its buffer.
"""

from processes import answering, server
from throughput import alternate
from workloads import NUM_NEW_TOKENS, WORKLOADS, S, Workload, find_directory, make_whole_tokenizer

NUM_STREAMS = (1, 16)
NOBODY = "unix:/nonexistent/whence"


def measure(workload: Workload, target: str, runs: int) -> None:
    """Print a row for each number of streams."""
    directory = find_directory(workload)
    tokenizer = make_whole_tokenizer(workload)
    with answering("peer.py", str(directory), workload.dtype, str(tokenizer)) as peer:
        for num_streams in NUM_STREAMS:

            def speed(record: str, num_streams: int = num_streams) -> float:
                answer = peer.ask(
                    num_streams=num_streams,
                    num_new_tokens=NUM_NEW_TOKENS,
                    mode="static",
                    record=record,
                )
                if record not in ("", NOBODY) and answer["num_lost"]:
                    raise SystemExit("the server did not record every generation: see above")
                return float(answer["tokens"] / answer["seconds"])

            _, _, alone = alternate(runs, lambda: speed(NOBODY), lambda: speed(""))
            with_hook, without, ratio = alternate(runs, lambda: speed(target), lambda: speed(""))
            print(
                f"| {workload} | {num_streams} | {with_hook:,.0f} | {without:,.0f} | "
                f"{ratio:.2f} | {alone:.2f} |",
                flush=True,
            )


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads."""
    print("| workload | sequences | recorded, tokens/s | not recorded | ratio | hook alone |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    with server(find_directory(S)) as (_, target):
        for name in names:
            measure(WORKLOADS[name], target, runs)
