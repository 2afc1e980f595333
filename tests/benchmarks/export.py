"""Export of spans under stress: a burst, and a collector outage. No span may be lost."""

import time

from processes import answering, server
from workloads import S, find_directory

BURST_STEPS = 20_000
STREAMS = 20


def count_spans(num_streams: int, num_new_tokens: int) -> int:
    """Return the number of spans of these streams, step spans and others."""
    # In addition to the steps: SERVER, GenAI span, queue, prefill, decode.
    return num_streams * (num_new_tokens + 5)


def burst() -> None:
    """Generate 20,000 steps at full speed and counts what arrives."""
    expected = count_spans(STREAMS, BURST_STEPS // STREAMS)
    with (
        answering("collector.py") as collector,
        server(
            find_directory(S),
            "--step-spans",
            "all",
            "--otlp-endpoint",
            collector.ready["endpoint"],
        ) as (_, target),
        answering("load.py", target, str(S.vocabulary_size)) as load,
    ):
        started = time.perf_counter()
        answer = load.ask(num_streams=STREAMS, num_new_tokens=BURST_STEPS // STREAMS)
        arrived = collector.ask(wait_for=expected)["num_spans"]
        print(
            f"burst: {arrived:,} of {expected:,} spans arrived, {expected - arrived} lost; "
            f"generated in {answer['seconds']:.1f} s, all sent after "
            f"{time.perf_counter() - started:.1f} s"
        )


def outage(seconds: float) -> None:
    """Generate while the collector is away, and counts once it is back."""
    num_new_tokens = 200
    expected = count_spans(STREAMS, num_new_tokens)
    with (
        answering("collector.py") as collector,
        server(
            find_directory(S),
            "--step-spans",
            "all",
            "--otlp-endpoint",
            collector.ready["endpoint"],
        ) as (_, target),
        answering("load.py", target, str(S.vocabulary_size)) as load,
    ):
        collector.ask(stop=True)
        load.ask(num_streams=STREAMS, num_new_tokens=num_new_tokens)
        time.sleep(seconds)
        assert collector.ask()["num_spans"] == 0
        back = time.perf_counter()
        collector.ask(start=True)
        arrived = collector.ask(wait_for=expected)["num_spans"]
        print(
            f"collector away for {seconds:.0f} s: {arrived:,} of {expected:,} spans arrived, "
            f"{expected - arrived} lost; caught up {time.perf_counter() - back:.1f} s after it "
            "came back"
        )


def run(outage_s: float) -> None:
    burst()
    outage(outage_s)
