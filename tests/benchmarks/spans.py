"""CPU time of a step's span, from the journal to the wire."""

import asyncio
import time
from statistics import median

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from processes import Answering, answering
from storage import VOCABULARY, varied_step

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.telemetry import ContentCapture
from whence_server.journal.codec import encode_step
from whence_server.telemetry.export.readable import make_readable_spans
from whence_server.telemetry.export.resource import Envelope, make_service_resource
from whence_server.telemetry.spans.encoder import SpanEncoder

STEPS_PER_S = (1_000, 5_000)
SECONDS = 5.0
NUM_STEPS = 4_096
BATCH = 512
PARTS: dict[str, dict[str, object]] = {
    "with 8 candidates, as shipped": {},
    "without the summary": {"step_summary": False},
    "without candidates": {"step_candidates": False},
    "without candidates and the summary": {"step_candidates": False, "step_summary": False},
    "with texts, and the token in the span's name": {
        "content": ContentCapture.SPAN_ONLY,
        "token_span_names": True,
    },
}


class Encoding:
    """Steps in a journal, to be made into a request with their spans.

    Measured in CPU time; the least of several runs counts.
    """

    def __init__(self, **options: object) -> None:
        started = GenerationStarted(
            generation_id="00000000-0000-7000-8000-000000000000",
            trace_id="1" * 32,
            span_id="2" * 16,
            trace_flags=1,
            tokenizer_digest="d" * 64,
        )
        started.effective_decoding.sample.seed = 1
        self._start = Entry(
            1, started.generation_id, 1, EntryKind.STARTED, started.SerializeToString()
        )
        self._entries = [
            Entry(i + 2, started.generation_id, i + 2, EntryKind.STEP, payload)
            for i, payload in enumerate(
                encode_step(varied_step(0, i)) for i in range(2 * NUM_STEPS)
            )
        ]
        self._options = options
        self.request = b""

    def measure_ours(self) -> float:
        """Return the microseconds of a span, from journal bytes to the request's bytes."""
        return asyncio.run(self._ours())

    async def _ours(self) -> float:
        encoder = SpanEncoder(StartOnly(self._start), None, vocabularies=Words(), **self._options)
        envelope = Envelope(make_service_resource("0"), "0")
        await encoder.encode(self._start)
        # The first half fills the caches and does not count.
        await _encode(encoder, self._entries[:NUM_STEPS])
        entries = self._entries[NUM_STEPS:]
        begun = time.process_time()
        spans = await _encode(encoder, entries)
        self.request = envelope.make_request(spans)
        return (time.process_time() - begun) / NUM_STEPS * 1e6

    def measure_theirs(self) -> float:
        """Return the microseconds that the SDK takes to encode a finished span into the request."""
        spans = list(make_readable_spans(self.request))
        begun = time.process_time()
        request = encode_spans(spans).SerializeToString()
        us = (time.process_time() - begun) / NUM_STEPS * 1e6
        # The SDK also writes an empty status of two bytes.
        assert len(request) == len(self.request) + 2 * NUM_STEPS
        return us


async def _encode(encoder: SpanEncoder, entries: list[Entry]) -> list[bytes]:
    """Encode entries in the batches of a follower."""
    spans = []
    for begin in range(0, len(entries), BATCH):
        batch = entries[begin : begin + BATCH]
        encoder.expect(batch)
        for entry in batch:
            spans += await encoder.encode(entry)
    return spans


class Words:
    """Vocabulary of words of eight letters, for texts in summaries and names."""

    async def find(self, _tokenizer_digest: str, _position: int) -> "Words":
        return self

    tokens = tuple(f" word{token_id:04}".encode() for token_id in range(VOCABULARY))


class StartOnly:
    """Journal that returns only the generation's start."""

    def __init__(self, started: Entry) -> None:
        self._started = started

    async def read(self, *_query: object) -> list[Entry]:
        return [self._started]


def follow(follower: Answering, steps_per_s: int, runs: int, **export: object) -> float:
    """Return the CPU microseconds of a step's export, from the journal to the wire.

    It is the median difference of alternating runs with and without an exporter.
    """
    asked = {"steps_per_s": steps_per_s, "seconds": SECONDS}
    found = []
    for _ in range(runs):
        alone, followed = follower.ask(**asked), follower.ask(**asked, **export)
        assert followed["num_spans"] == followed["num_steps"]
        found.append((followed["cpu_s"] - alone["cpu_s"]) / followed["num_steps"] * 1e6)
    return median(found)


def run(runs: int) -> None:
    encodings = {name: Encoding(**options) for name, options in PARTS.items()}
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in PARTS}
    for _ in range(runs):  # interleaved, so that all see the same machine
        for name, encoding in encodings.items():
            pairs[name].append((encoding.measure_ours(), encoding.measure_theirs()))
    for name, encoding in encodings.items():
        ours, theirs = (min(side) for side in zip(*pairs[name], strict=True))
        print(
            f"step span, {name}: from journal bytes to request bytes {ours:.1f} us, "
            f"{len(encoding.request) / NUM_STEPS:.0f} bytes; the SDK's encoder, from the finished "
            f"span on, {theirs:.1f} us ({ours / theirs:.2f})",
            flush=True,
        )
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
                    f"{steps_per_s:,} steps/s of 16 streams, {name}: {us * steps_per_s / 1e4:.1f}% "
                    f"of a core, {us:.1f} us a step (read, encoded, sent over gRPC)",
                    flush=True,
                )
