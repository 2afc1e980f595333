"""A process with a journal that grows at a given rate, and the exporter that follows it.

Reads a JSON command a line ({"steps_per_s": ..., "seconds": ..., "endpoint": ...}; without an
endpoint nothing is exported) and answers each with a JSON line of the process's CPU seconds, and of
the spans that the collector has.
"""

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from storage import varied_step

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from journal_export import JournalExport

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.entries import EntryKind
from whence_server.domain.otlp import OtlpSettings
from whence_server.journal.codec import encode_step
from whence_server.journal.journal import Journal
from whence_server.journal.rows import GenerationIndex
from whence_server.telemetry.export.otlp_grpc import OtlpGrpcSink
from whence_server.telemetry.follower import FollowOptions
from whence_server.telemetry.spans.encoder import SpanEncoder

NUM_STREAMS = 16


def cpu_s() -> float:
    """Return the user and system time of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def start_streams(journal: Journal) -> list[str]:
    names = [f"00000000-0000-7000-8000-{i:012d}" for i in range(NUM_STREAMS)]
    for i, name in enumerate(names):
        trace_id = f"{i + 1:032x}"
        started = GenerationStarted(
            generation_id=name, trace_id=trace_id, span_id="2" * 16, trace_flags=1
        )
        started.start_time.GetCurrentTime()
        index = GenerationIndex(name, trace_id, "m", time.time_ns(), "d", {}, "", 32)
        journal.create(index, started.SerializeToString())
    return names


async def append(journal: Journal, num_steps_each: int, steps_per_s: float) -> None:
    """Append steps at an even rate, one for all streams at a time, as a decoding batch does."""
    streams = start_streams(journal)
    turns = [
        [encode_step(varied_step(stream, i)) for stream in range(NUM_STREAMS)]
        for i in range(num_steps_each)
    ]
    started = time.perf_counter()
    for i, payloads in enumerate(turns):
        for stream, payload in zip(streams, payloads, strict=True):
            journal.append(stream, EntryKind.STEP, payload)
        ahead_s = i * NUM_STREAMS / steps_per_s - (time.perf_counter() - started)
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)


async def measure(command: dict[str, Any]) -> dict[str, float]:
    num_steps_each = round(command["steps_per_s"] * command["seconds"] / NUM_STREAMS)
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as name:
        journal = await Journal.open(Path(name))
        exporter = None
        if command.get("endpoint"):
            settings = OtlpSettings(endpoint=command["endpoint"], gzip=command.get("gzip", False))
            candidates = command.get("candidates", True)
            exporter = JournalExport(
                journal,
                OtlpGrpcSink(settings),
                encoder=SpanEncoder(journal, step_spans=None, step_candidates=candidates),
                linger_s=FollowOptions().linger_s,
            )
            exporter.start()
        before = cpu_s()
        await append(journal, num_steps_each, command["steps_per_s"])
        await journal.flush()
        num_spans = num_requests = 0
        if exporter is not None:
            assert await exporter.flush(60), exporter.stats.last_error
            num_spans = exporter.stats.num_exported
            num_requests = exporter.stats.num_requests
        used = cpu_s() - before
        if exporter is not None:
            await exporter.close()
        await journal.close()
    return {
        "cpu_s": used,
        "num_spans": num_spans,
        "num_requests": num_requests,
        "num_steps": num_steps_each * NUM_STREAMS,
    }


def main() -> None:
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(measure(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
