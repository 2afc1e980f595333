"""Spans: what one costs, and under stress: a burst, a collector that is away. None may be lost."""

import asyncio
import time

from processes import answering, server
from storage import typical_step
from workloads import S, model_directory

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.codec import encode_step
from whence_server.telemetry.encoder import SpanEncoder
from whence_server.telemetry.resource import Envelope, service_resource

BURST_STEPS = 20_000
STREAMS = 20


def spans_of(num_streams: int, num_new_tokens: int) -> int:
    """Step spans, and for each generation decode, model call and SERVER."""
    # Besides the steps: the call, the generation, its queue, its prefill, its decode.
    return num_streams * (num_new_tokens + 5)


def burst() -> None:
    """Generates 20,000 steps at full speed and counts what arrives."""
    expected = spans_of(STREAMS, BURST_STEPS // STREAMS)
    with (
        answering("collector.py") as collector,
        server(
            model_directory(S),
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
    """Generates while the collector is away, and counts once it is back."""
    num_new_tokens = 200
    expected = spans_of(STREAMS, num_new_tokens)
    with (
        answering("collector.py") as collector,
        server(
            model_directory(S),
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


async def encode(num_steps: int) -> tuple[float, float]:
    """Microseconds and bytes of a step span, from journal bytes to the request's bytes."""
    started = GenerationStarted(
        generation_id="g", trace_id="1" * 32, span_id="2" * 16, trace_flags=1
    )
    start = Entry(1, "g", 1, EntryKind.STARTED, started.SerializeToString())
    encoder = SpanEncoder(StartOnly(start), None)
    entries = [
        Entry(i + 2, "g", i + 2, EntryKind.STEP, encode_step(typical_step(i)))
        for i in range(num_steps)
    ]
    envelope = Envelope(service_resource("0"), "0")
    begun = time.perf_counter()
    spans = [span for entry in entries for span in await encoder.spans_of(entry)]
    request = envelope.request(spans)
    return (time.perf_counter() - begun) / num_steps * 1e6, len(request) / num_steps


class StartOnly:
    """A journal, as far as step spans read it: the generation's start, once."""

    def __init__(self, started: Entry) -> None:
        self._started = started

    async def read(self, *_query: object) -> list[Entry]:
        return [self._started]


def run(outage_s: float) -> None:
    microseconds, size = asyncio.run(encode(4_096))
    print(f"step span, journal bytes to request bytes: {microseconds:.1f} us, {size:.0f} bytes")
    burst()
    outage(outage_s)
