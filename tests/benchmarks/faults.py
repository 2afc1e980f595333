"""Time and lost spans with a faulty collector. The exporter has its default settings.

The collector is that of the tests; only the timeout is shorter, so that it is exceeded.
"""

import asyncio
import logging
import sys
import tempfile
import time
from pathlib import Path

from following import NUM_STREAMS, append

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from faulty_collector import (
    INTERNAL,
    UNAVAILABLE,
    Cut,
    Fault,
    FaultyCollector,
    Garbage,
    Noise,
    Slow,
    exhausted,
)
from journal_export import JournalExport

from whence_server.domain.otlp import OtlpProtocol
from whence_server.journal.journal import Journal
from whence_server.telemetry.export.otlp_grpc import OtlpGrpcSink
from whence_server.telemetry.export.otlp_http import OtlpHttpSink
from whence_server.telemetry.follower import FollowOptions
from whence_server.telemetry.spans.encoder import SpanEncoder

NUM_STEPS_EACH = 256
TIMEOUT_S = 0.5
AWAY_S = 2.0
FAULTS: dict[str, list[Fault]] = {
    "slow, beyond the timeout": [Slow(2 * TIMEOUT_S)] * 2,
    "UNAVAILABLE / 503": [UNAVAILABLE] * 4,
    "RESOURCE_EXHAUSTED / 429, come back in 1 s": [exhausted(1)] * 2,
    "INTERNAL / 500": [INTERNAL] * 4,
    "dies in mid-batch, nothing stored": [Cut(stored=False)] * 2,
    "dies in mid-batch, all stored": [Cut(stored=True)] * 2,
    "garbage for an answer": [Garbage()] * 3,
    "garbage on the connection": [Noise()] * 2,
}
AWAY = f"away for {AWAY_S:g} s"


async def meet(protocol: OtlpProtocol, fault: str) -> str:
    """Export steps to a collector with a fault; return a row of the table."""
    num_spans = NUM_STREAMS * NUM_STEPS_EACH
    sink_type = OtlpGrpcSink if protocol is OtlpProtocol.GRPC else OtlpHttpSink
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as name:
        journal = await Journal.open(Path(name))
        async with FaultyCollector(protocol).running() as collector:
            collector.faults.extend(FAULTS.get(fault, []))
            collector.refuse_connections(fault == AWAY)
            exporter = JournalExport(
                journal,
                sink_type(collector.settings(timeout_s=TIMEOUT_S)),
                encoder=SpanEncoder(journal, step_spans=None),
                linger_s=FollowOptions().linger_s,
            )
            exporter.start()
            started = time.perf_counter()
            await append(journal, NUM_STEPS_EACH, 1e9)
            await journal.flush()
            if fault == AWAY:
                await asyncio.sleep(AWAY_S)
                collector.refuse_connections(False)
            await exporter.flush(120)
            seconds = time.perf_counter() - started
            retries = exporter.stats.num_retries
            await exporter.close()
        await journal.close()
    arrived = len({(span.trace_id, span.span_id) for span in collector.spans})
    twice = len(collector.spans) - arrived
    return (
        f"| {fault} | {protocol.value} | {num_spans:,} | {num_spans - arrived} | {twice} | "
        f"{retries} | {seconds:.1f} s |"
    )


def run() -> None:
    logging.getLogger("whence_server").setLevel(logging.ERROR)  # no warnings about held spans
    print("| the collector | over | spans | lost | sent twice | retries | all there after |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for fault in (*FAULTS, AWAY):
        for protocol in OtlpProtocol:
            print(asyncio.run(meet(protocol, fault)), flush=True)
