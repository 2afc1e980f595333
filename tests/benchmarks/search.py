"""Cost of the index of texts, and time of a search among many generations.

Run it with `.venv/bin/python tests/benchmarks/search.py [NUM_GENERATIONS]`. Texts are English-like:
words of docs/ by their own frequencies, about 1,000 characters of output, and a prompt of which the
first 300 characters are the same in all generations.
"""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import apsw

from whence.v1 import generation_pb2 as g
from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.rows import ListFilter
from whence_server.journal.schema import migrate
from whence_server.journal.search.fingerprints import make_fingerprints, normalise
from whence_server.journal.search.search import Search

DOCS = Path(__file__).parents[2] / "docs"
TOKENS = 250
"""Tokens of an output of 1,000 characters."""


def make_texts(draw: random.Random, words: list[str]) -> tuple[str, str]:
    """Return a prompt and an output."""
    system = " ".join(words[:50])
    prompt = f"{system} {' '.join(draw.choices(words, k=30))}?"
    return prompt, " ".join(draw.choices(words, k=160))


def insert(database: apsw.Connection, number: int, prompt: str, output: str) -> None:
    generation_id = f"00000000-0000-4000-8000-{number:012d}"
    started = g.GenerationStarted(generation_id=generation_id, model="tiny", prompt=prompt)
    finished = g.GenerationFinished(sequences=[g.SequenceResult(text=output)])
    rows = (
        (2 * number - 1, 1, EntryKind.STARTED, started.SerializeToString()),
        (2 * number, 2, EntryKind.FINISHED, finished.SerializeToString()),
    )
    for position, offset, kind, payload in rows:
        database.execute(
            "INSERT INTO entries VALUES (1, ?, ?, ?, ?, ?, NULL, zeroblob(32))",
            (position, 2 * number - 1, offset, int(kind), payload),
        )
    database.execute(
        "INSERT INTO generations VALUES (?, 1, ?, zeroblob(32), '', 'tiny', ?, '', '{}', '', 3, 3, "
        "9, '', 0)",
        (generation_id, 2 * number - 1, number),
    )


def list_words() -> list[str]:
    return [word for page in sorted(DOCS.glob("*.md")) for word in page.read_text().split()]


def make_journal(directory: Path, num_generations: int) -> list[str]:
    """Write a journal; return some of its outputs."""
    words = list_words()
    draw = random.Random(1)
    database = apsw.Connection(str(directory / "journal.db"))
    database.pragma("journal_mode", "wal")
    migrate(database)
    some = []
    with database:
        database.execute("INSERT INTO writers VALUES (1, zeroblob(16))")
        for number in range(1, num_generations + 1):
            prompt, output = make_texts(draw, words)
            insert(database, number, prompt, output)
            if number % (num_generations // 20) == 0:
                some.append(output)
    database.close()
    return some


async def measure(directory: Path, some: list[str], num_generations: int) -> None:
    before = (directory / "journal.db").stat().st_size
    journal = await Journal.open(directory)
    search = Search(journal)
    begun, cpu = time.perf_counter(), time.process_time()
    async with search.running():
        while not await search.indexer.flush(60):
            left = search.indexer.num_entries_behind // 2
            print(f"  {left:,} generations left", flush=True)
        wall_s, cpu_s = time.perf_counter() - begun, time.process_time() - cpu
        print(
            f"index: {1e3 * cpu_s / num_generations:.2f} ms of processor time for a generation, "
            f"{1e6 * cpu_s / num_generations / TOKENS:.1f} us for each of {TOKENS} tokens "
            f"({wall_s:.0f} s for all)"
        )
        await report_times(search, some)
    await journal.close()
    grown = (directory / "journal.db").stat().st_size - before
    print(f"size: {grown / num_generations / 1024:.1f} KiB for a generation")


async def report_times(search: Search, some: list[str]) -> None:
    wanted, common = ListFilter(), " ".join(list_words()[5:20])
    for name, make in (
        ("a sentence of one", lambda text: text[300:380]),
        ("most of a sentence", lambda text: text[300:330] + " or else " + text[340:380]),
        ("500 characters", lambda text: text[200:700]),
        ("a sentence of none", lambda text: text[300:380][::-1]),
        ("a sentence of all", lambda _: common),
    ):
        times, num_hits = [], 0
        for text in some:
            begun = time.perf_counter()
            page = await search.find(make(text), wanted, limit=20)
            times.append(1e3 * (time.perf_counter() - begun))
            num_hits += len(page.hits)
        print(
            f"{name}: median {statistics.median(times):.1f} ms, longest {max(times):.1f} ms, "
            f"{num_hits} hits of {len(some)}"
        )


async def main() -> None:
    num_generations = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        some = make_journal(directory, num_generations)
        one = normalise(some[0])
        print(f"{len(make_fingerprints(one))} fingerprints for {len(one)} characters")
        await measure(directory, some, num_generations)


if __name__ == "__main__":
    asyncio.run(main())
