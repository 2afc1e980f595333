"""Cost of recording: bytes and microseconds of a step, and the time to read a generation."""

import asyncio
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeAlias

from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.key_sources import KeyScheme, KeySource
from whence_server.domain.steps import (
    Candidates,
    Decision,
    Draw,
    ProcessorEffects,
    Step,
    Timing,
)
from whence_server.journal.codec import encode_step
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability, FinishIndex, GenerationIndex
from whence_server.journal.sealing.key_file import add_master_key
from whence_server.journal.sealing.opening import SealingOptions
from whence_server.journal.store import Store

OpenStore: TypeAlias = Callable[[Path, Durability], Store]
NUM_STEPS = 4_096
VOCABULARY = 50_257


def typical_step(index: int, num_candidates: int = 8, num_processors: int = 0) -> Step:
    """Return a sampled step, as of a model with a large vocabulary."""
    ids = [1_000 + 331 * i for i in range(num_candidates)]
    logprobs = [-1.5 - 0.1 * i for i in range(num_candidates)]
    effects = None
    if num_processors:
        effects = ProcessorEffects(
            [50_257, 412, 96][:num_processors],
            [0.0, 0.05, 0.01][:num_processors],
            [-2.1, -1.9, -1.8][:num_processors],
        )
    decision = Decision(
        ids[0],
        -1.5,
        -1.4,
        0,
        3.2,
        2.9,
        Candidates(ids, logprobs, logprobs),
        effects,
        Draw(0.3, ids[1], 0.7),
    )
    timing = Timing(1_000_000_000 + index * 9_000_000, 8_000_000, 900_000, 16, 32 + index)
    return Step(0, index, decision, " word", index * 5, index * 5 + 5, timing)


def varied_step(stream: int, index: int) -> Step:
    """Return a step with random numbers, so that caches and gzip do not benefit.

    Token ids have the frequencies of words (Zipf), and the costs of a turn are the same for all of
    its sequences.
    """
    turn, own = Random(index), Random(stream << 32 | index)
    ids = [min(int(VOCABULARY ** own.random()), VOCABULARY - 1) for _ in range(9)]
    logprobs = sorted((-own.expovariate(0.4) for _ in range(8)), reverse=True)
    # Five tokens are left, each more likely than before, and none above 1.
    sampling_logprobs = [0.7 * n for n in logprobs[:5]] + [-math.inf] * 3
    decision = Decision(
        ids[0],
        logprobs[0],
        sampling_logprobs[0],
        own.choice([0, 0, 0, 1, 1, 2, 5, 40]),
        5 * own.random(),
        4 * own.random(),
        Candidates(ids[:8], logprobs, sampling_logprobs),
        None,
        Draw(own.random(), ids[8], own.random()),
    )
    timing = Timing(
        1_000_000_000 + index * 9_000_000 + turn.randrange(900_000),
        8_000_000 + turn.randrange(900_000),
        900_000 + turn.randrange(90_000),
        16,
        32 + index,
    )
    return Step(0, index, decision, " word", index * 5, index * 5 + 5, timing)


async def append(
    durability: Durability, *, sealed: bool = False, open_store: OpenStore | None = None
) -> tuple[float, float, float, float]:
    """Return microseconds of an append, steps/s committed, bytes of a step, s to read all."""
    steps = [encode_step(typical_step(i)) for i in range(NUM_STEPS)]
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as name:
        directory = Path(name) / "data"
        sealing = _make_keys(Path(name) / "master.key") if sealed else None
        journal = await Journal.open(
            directory, durability=durability, sealing=sealing, open_store=open_store
        )
        index = GenerationIndex("g", "t" * 32, "m", 0, "d", {}, "", 1)
        journal.create(index, b"started")
        started = time.perf_counter()
        for payload in steps:
            journal.append("g", EntryKind.STEP, payload)
        appended = time.perf_counter() - started
        await journal.flush()
        committed = time.perf_counter() - started
        journal.finish("g", b"finished", FinishIndex(FinishReason.LENGTH, NUM_STEPS, ""))
        await journal.flush()
        started = time.perf_counter()
        entries = await journal.read("g", limit=NUM_STEPS + 2)
        read = time.perf_counter() - started
        assert len(entries) == NUM_STEPS + 2
        size_bytes = journal.size_bytes
        await journal.close()
        size = (
            size_bytes if open_store else sum(path.stat().st_size for path in directory.iterdir())
        )
    return appended / NUM_STEPS * 1e6, NUM_STEPS / committed, size / NUM_STEPS, read


def _make_keys(path: Path) -> SealingOptions:
    add_master_key(path)
    return SealingOptions(KeySource(KeyScheme.FILE, str(path)))


def run() -> None:
    for num_processors in (0, 3):
        size = len(encode_step(typical_step(100, num_processors=num_processors)))
        print(f"step record, 8 candidates, {num_processors} processors: {size} bytes")
    started = time.perf_counter()
    for i in range(NUM_STEPS):
        encode_step(typical_step(i))
    encoding = (time.perf_counter() - started) / NUM_STEPS * 1e6
    print(f"making and serialising a step: {encoding:.1f} us")
    for durability, sealed in itertools.product(Durability, (False, True)):
        form = "encrypted" if sealed else "in clear"
        taken = asyncio.run(append(durability, sealed=sealed))
        report(f"SQLite, {form}, {durability.value}", *taken)
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from postgres import PostgresServer

    from whence_server.journal.postgres.store import PostgresStore

    server = PostgresServer(durable=True)
    try:
        for durability in Durability:
            url = server.make_journal_url(durability.value)

            def open_store(*_: object, url: str = url) -> Store:
                return PostgresStore(url)

            taken = asyncio.run(append(durability, open_store=open_store))
            report(f"PostgreSQL, in clear, {durability.value}", *taken)
    finally:
        server.close()


def report(name: str, append_us: float, rate: float, size: float, read_s: float) -> None:
    print(
        f"journal, {name}: {append_us:.1f} us an append, {rate:,.0f} steps/s committed, "
        f"{size:.0f} bytes a step on disk, {NUM_STEPS} steps read in {read_s * 1e3:.0f} ms"
    )
