"""Forms of a generation's steps in a trace: bytes, CPU time, and memory of Jaeger."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
from google.protobuf.timestamp_pb2 import Timestamp
from storage import varied_step

from whence.v1.generation_pb2 import Decoding, GenerationFinished, GenerationStarted, Sample
from whence.v1.step_pb2 import ProcessorEffects, Step
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.telemetry import StepForm
from whence_server.journal.codec import encode_step
from whence_server.telemetry.export.otlp_grpc import EXPORT_METHOD
from whence_server.telemetry.export.resource import Envelope, make_service_resource
from whence_server.telemetry.spans.encoder import SpanEncoder

NUM_STEPS = 1_000
NUM_TRACES = 60
START_S = 1_800_000_000
FORMS = {
    "spans": {},
    "events": {"step_form": StepForm.EVENTS},
    "both": {"step_form": StepForm.BOTH},
    "spans and arrays": {"token_arrays": NUM_STEPS},
    "blocks and arrays": {"step_spans": 0, "token_arrays": NUM_STEPS},
}


class OneGeneration:
    """Journal of one sampled generation with eight candidates and two processors.

    Args:
        number: number of the trace.
    """

    def __init__(self, number: int) -> None:
        generation_id = f"00000000-0000-7000-8000-{number:012}"
        started = GenerationStarted(
            generation_id=generation_id,
            trace_id=f"{number + 1:032x}",
            span_id=f"{number + 1:016x}",
            trace_flags=1,
            model="bench",
            start_time=Timestamp(seconds=START_S + number),
            effective_decoding=Decoding(sample=Sample(temperature=0.8, top_p=0.95)),
            processor_names=["temperature", "top_p"],
        )
        finished = GenerationFinished(
            num_prompt_tokens=32,
            num_generated_tokens=NUM_STEPS,
            end_time=Timestamp(seconds=START_S + number + 10),
        )
        payloads = [
            (EntryKind.STARTED, started.SerializeToString()),
            *((EntryKind.STEP, _make_step(number, index)) for index in range(NUM_STEPS)),
            (EntryKind.FINISHED, finished.SerializeToString()),
        ]
        self.entries = [
            Entry(offset, generation_id, offset, kind, payload)
            for offset, (kind, payload) in enumerate(payloads, 1)
        ]

    async def read(
        self, generation_id: str, after: int, limit: int, kinds: frozenset[EntryKind]
    ) -> list[Entry]:
        found = (it for it in self.entries[after:] if it.kind in kinds)
        return [it for it, _ in zip(found, range(limit), strict=False)]


def _make_step(stream: int, index: int) -> bytes:
    step = Step.FromString(encode_step(varied_step(stream, index)))
    effects = ProcessorEffects(
        num_kept=[50_257, 96], removed_mass=[0, 0.05], token_logprobs=[-1.9, -1.8]
    )
    step.processors.CopyFrom(effects)
    return step.SerializeToString()


async def encode(journal: OneGeneration, **form: object) -> tuple[list[bytes], float]:
    """Return the spans of a generation, and the CPU microseconds of a step."""
    encoder = SpanEncoder(journal, **form)
    begun = time.process_time()
    encoder.expect(journal.entries)
    spans = [span for entry in journal.entries for span in await encoder.encode(entry)]
    return spans, (time.process_time() - begun) / NUM_STEPS * 1e6


def find_jaeger() -> str | None:
    return os.environ.get("JAEGER_BINARY") or shutil.which("jaeger")


def _find_free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


@contextmanager
def running_jaeger(program: str) -> Iterator[tuple[str, psutil.Process]]:
    """Run a Jaeger with traces in memory; yield its OTLP address and its process."""
    otlp, query, http, check = (f"127.0.0.1:{_find_free_port()}" for _ in range(4))
    config = {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query", "healthcheckv2"],
            "pipelines": {
                "traces": {
                    "receivers": ["otlp"],
                    "processors": [],
                    "exporters": ["jaeger_storage_exporter"],
                }
            },
            "telemetry": {"metrics": {"level": "none"}},
        },
        "extensions": {
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": http},
                "grpc": {"endpoint": query},
            },
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": 10_000}}}},
            "healthcheckv2": {"use_v2": True, "http": {"endpoint": check}},
        },
        "receivers": {"otlp": {"protocols": {"grpc": {"endpoint": otlp}}}},
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "config.json"
        path.write_text(json.dumps(config))
        process = subprocess.Popen(
            [program, "--config", str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_until_healthy(f"http://{check}/status", process)
            yield otlp, psutil.Process(process.pid)
        finally:
            process.kill()
            process.wait()


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit(f"Jaeger ended with {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("Jaeger is not ready after a minute")


def measure_memory(program: str, requests: list[bytes]) -> float:
    """Return by how many megabytes a trace makes Jaeger grow."""
    with running_jaeger(program) as (otlp, process), grpc.insecure_channel(otlp) as channel:
        export = channel.unary_unary(EXPORT_METHOD)
        export(requests[0])
        before = process.memory_info().rss
        for request in requests[1:]:
            export(request)
        return (process.memory_info().rss - before) / (len(requests) - 1) / 1e6


def run(runs: int) -> None:
    program = find_jaeger()
    envelope = Envelope(make_service_resource("0"), "0")
    generations = [OneGeneration(number) for number in range(NUM_TRACES)]
    print(f"\na trace of {NUM_STEPS:,} steps, 8 candidates, 2 processors")
    print("| form | spans | bytes a step | us a step | Jaeger's memory a trace |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, form in FORMS.items():
        asyncio.run(encode(generations[1], **form))  # fills the caches of tokens and does not count
        tries = [asyncio.run(encode(generations[0], **form)) for _ in range(runs)]
        spans, us = min(tries, key=lambda tried: tried[1])
        memory = "no Jaeger here"
        if program is not None:
            requests = [
                envelope.make_request(asyncio.run(encode(one, **form))[0]) for one in generations
            ]
            memory = f"{measure_memory(program, requests):.1f} MB"
        num_bytes = sum(map(len, spans)) / NUM_STEPS
        print(f"| {name} | {len(spans)} | {num_bytes:,.0f} | {us:.1f} | {memory} |", flush=True)
