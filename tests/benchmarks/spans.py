"""What a step's span costs, from the journal to the wire, and how much of a core that takes."""

import asyncio
import time
from statistics import median

from processes import Answering, answering
from storage import varied_step

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.codec import encode_step
from whence_server.telemetry.encoder import SpanEncoder
from whence_server.telemetry.resource import Envelope, service_resource

STEPS_PER_S = (1_000, 5_000)
SECONDS = 5.0
NUM_STEPS = 4_096
REPEATS = 5


async def encode(candidates: bool) -> tuple[float, float]:
    """Microseconds and bytes of a step span, from journal bytes to the request's bytes."""
    started = GenerationStarted(
        generation_id="00000000-0000-7000-8000-000000000000",
        trace_id="1" * 32,
        span_id="2" * 16,
        trace_flags=1,
    )
    start = Entry(1, started.generation_id, 1, EntryKind.STARTED, started.SerializeToString())
    encoder = SpanEncoder(StartOnly(start), None, step_candidates=candidates)
    entries = [
        Entry(i + 2, start.generation_id, i + 2, EntryKind.STEP, encode_step(varied_step(0, i)))
        for i in range(NUM_STEPS)
    ]
    envelope = Envelope(service_resource("0"), "0")
    begun = time.perf_counter()
    spans = [span for entry in entries for span in await encoder.spans_of(entry)]
    request = envelope.request(spans)
    return (time.perf_counter() - begun) / NUM_STEPS * 1e6, len(request) / NUM_STEPS


class StartOnly:
    """A journal, as far as step spans read it: the generation's start, once."""

    def __init__(self, started: Entry) -> None:
        self._started = started

    async def read(self, *_query: object) -> list[Entry]:
        return [self._started]


def follow(follower: Answering, steps_per_s: int, runs: int, **export: object) -> float:
    """CPU microseconds of a step, with somebody who exports less without: journal to wire.

    Both ways append and commit the same. Medians of alternating runs.
    """
    asked = {"steps_per_s": steps_per_s, "seconds": SECONDS}
    found = []
    for _ in range(runs):
        alone, followed = follower.ask(**asked), follower.ask(**asked, **export)
        assert followed["num_spans"] == followed["num_steps"]
        found.append((followed["cpu_s"] - alone["cpu_s"]) / followed["num_steps"] * 1e6)
    return median(found)


def run(runs: int) -> None:
    for candidates, name in ((True, "with 8 candidates, as shipped"), (False, "without")):
        found = [asyncio.run(encode(candidates)) for _ in range(REPEATS)]
        us, size = min(us for us, _ in found), found[0][1]
        print(f"step span, {name}: journal bytes to request bytes {us:.1f} us, {size:.0f} bytes")
    with answering("following.py") as follower, answering("collector.py", "discard") as collector:
        endpoint = collector.ready["endpoint"]
        for steps_per_s in STEPS_PER_S:
            for name, options in (
                ("as shipped", {}),
                ("without candidates", {"candidates": False}),
                ("as shipped, with gzip", {"gzip": True}),
            ):
                us = follow(follower, steps_per_s, runs, endpoint=endpoint, **options)
                print(
                    f"{steps_per_s:,} steps/s from 16 streams, {name}: {us:.1f} us of CPU a step "
                    "from the journal to the wire (reading, encoding, sending over gRPC): "
                    f"{us * steps_per_s / 1e4:.1f}% of a core",
                    flush=True,
                )
