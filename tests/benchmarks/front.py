"""OpenAI's API over HTTP against gRPC, from one server: throughput, first token, idle streams."""

from statistics import median

import psutil
from processes import answering, find_free_port, server
from throughput import alternate, speed
from workloads import NUM_NEW_TOKENS, WORKLOADS, find_directory

NUM_IDLE = 1000


def run(runs: int, names: list[str]) -> None:
    """Print the table for the named workloads, and the memory of idle streams."""
    print("| workload | OpenAI's API over HTTP / gRPC | HTTP | gRPC | ratio |")
    print("| --- | --- | ---: | ---: | ---: |")
    for name in names:
        workload = WORKLOADS[name]
        port = find_free_port()
        flags = (*workload.flags, "--http-listen", f"127.0.0.1:{port}", "--model-name", "bench")
        with (
            server(find_directory(workload), *flags) as (process, target),
            answering("load.py", target, str(workload.vocabulary_size)) as over_grpc,
            answering(
                "http_load.py", f"http://127.0.0.1:{port}", str(workload.vocabulary_size)
            ) as over_http,
        ):
            for num_streams in (1, 16):
                for what, options in (("", {}), (", 8 logprobs", {"num_logprobs": 8})):
                    row = alternate(
                        runs,
                        lambda n=num_streams, o=options: speed(over_http, num_streams=n, **o),
                        lambda n=num_streams: speed(over_grpc, num_streams=n),
                    )
                    told = f"{num_streams} streams{what}, tokens/s"
                    print(f"| {workload} | {told} | {row[0]:,.0f} | {row[1]:,.0f} | {row[2]:.2f} |")
            first = [
                [
                    median(load.ask(num_streams=1, num_new_tokens=2)["first_s"]) * 1e3
                    for load in (over_http, over_grpc)
                ]
                for _ in range(max(runs, 10))
            ]
            http_ms, grpc_ms = (median(column) for column in zip(*first, strict=True))
            ratio = http_ms / grpc_ms
            print(
                f"| {workload} | first token, ms | {http_ms:.1f} | {grpc_ms:.1f} | {ratio:.2f} |",
                flush=True,
            )
            if name == names[-1]:
                before = psutil.Process(process.pid).memory_info().rss
                over_http.ask(num_idle=NUM_IDLE, num_new_tokens=NUM_NEW_TOKENS)
                after = psutil.Process(process.pid).memory_info().rss
                print(
                    f"\n{NUM_IDLE} streams that nobody reads: {(after - before) / 2**20:.0f} MiB "
                    f"of the front, {(after - before) / NUM_IDLE / 1024:.0f} KiB each"
                )
