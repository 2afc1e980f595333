"""A large record: opening, listing, getting and watching it; what retention and compaction cost.

    python tests/benchmarks/archive.py [GENERATIONS] [STEPS] [--store sqlite | postgresql]

Makes a journal of 100,000 generations with ten steps each, in a temporary directory and in a
PostgreSQL server on this machine, and asks it without a network of its own. One generation in fifty
is older than half a year.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from aged_journal import DAY_NS, name
from storage import OpenStore, typical_step

from whence.v1 import call_pb2
from whence.v1 import generation_pb2 as g
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.retention import LabelPattern, RetentionPolicy
from whence_server.journal.codec import encode_step
from whence_server.journal.journal import Journal
from whence_server.journal.retention.compact import compact_journal
from whence_server.journal.rows import FinishIndex, GenerationIndex, ListFilter

NUM_ASKED = 200
OLD_SHARE = 50
SQLITE, POSTGRESQL = "sqlite", "postgresql"
_LEASE_S = 3.0
# A server asks for the size of its tables with each renewal of its lease.
_SIZE_KNOWN_S = _LEASE_S
BOUND_MS, START_BOUND_S = 50.0, 2.0
_HALF_A_YEAR = RetentionPolicy(age_s=180 * 86_400)


async def fill(
    directory: Path, num_generations: int, num_steps: int, open_store: OpenStore | None
) -> int:
    """Record the generations, oldest first; the first of them are 200 days old.

    Returns:
        Bytes on disk.
    """
    journal = await Journal.open(directory, open_store=open_store)
    steps = [encode_step(typical_step(index)) for index in range(num_steps)]
    now = time.time_ns()
    finished = g.GenerationFinished(finish_reason=g.FINISH_REASON_LENGTH)
    for number in range(num_generations):
        age_days = 200 if number < num_generations // OLD_SHARE else 1
        start_ns = now - age_days * DAY_NS + number * 1_000_000
        labels = {"team": f"team {number % 20}", "kind": "all"}
        started = g.GenerationStarted(
            generation_id=name(number), prompt="a prompt " * 20, labels=labels
        )
        started.start_time.FromNanoseconds(start_ns)
        index = GenerationIndex(
            name(number),
            f"{number:032x}",
            f"model {number % 2}",
            start_ns,
            "d" * 64,
            labels,
            "a prompt",
            40,
        )
        journal.create(index, started.SerializeToString())
        for step in steps:
            journal.append(name(number), EntryKind.STEP, step)
        finish = FinishIndex(FinishReason.LENGTH, num_steps, "a text")
        journal.finish(name(number), finished.SerializeToString(), finish)
        call = call_pb2.Call(method="whence.v1.GenerationService/Generate")
        call.end_time.FromNanoseconds(start_ns)
        journal.record_call(name(number), call.SerializeToString())
        if number % 200 == 0:
            await journal.flush()
    await journal.flush()
    await asyncio.sleep(0 if open_store is None else _SIZE_KNOWN_S)
    size = journal.size_bytes
    await journal.close()
    return size


async def measure_ms(ask: Callable[[], Awaitable[object]], times: int = NUM_ASKED) -> list[float]:
    """Return the times of a question, sorted, in milliseconds."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await ask()
        taken.append((time.perf_counter() - began) * 1e3)
    return sorted(taken)


def show(what: str, taken: list[float]) -> None:
    p99 = taken[int(len(taken) * 0.99)]
    verdict = "" if p99 <= BOUND_MS else f"  ABOVE {BOUND_MS:g} ms"
    print(f"  {what}: median {statistics.median(taken):.2f} ms, p99 {p99:.2f} ms{verdict}")


async def measure_start(directory: Path, open_store: OpenStore | None) -> float:
    """Return the seconds to open a journal, the median of three."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        journal = await Journal.open(directory, open_store=open_store)
        taken.append(time.perf_counter() - began)
        await journal.close()
    return statistics.median(taken)


async def measure_questions(journal: Journal, num_generations: int) -> None:
    choose = Random(1)

    async def get() -> None:
        generation_id = name(choose.randrange(num_generations))
        await journal.get(generation_id)
        await journal.read(generation_id, kinds=(EntryKind.STARTED, EntryKind.FINISHED))

    show("get", await measure_ms(get))
    recent = time.time_ns() - 100 * DAY_NS
    for what, wanted in {
        "list the newest 50": ListFilter(),
        "list 50 of the oldest": ListFilter(start_before_ns=recent),
        "list 50 with a label of one in twenty": ListFilter(labels={"team": "team 7"}),
        # Each of them is on many generations.
        "list 50 with a label and a model that do not meet": ListFilter(
            labels={"kind": "all", "team": "team 7"}, model="model 0"
        ),
        "list 50 of a model that is on no generation": ListFilter(model="none"),
        "list one trace": ListFilter(trace_id=f"{num_generations // 3:032x}"),
    }.items():
        show(what, await measure_ms(lambda wanted=wanted: journal.list(wanted, 50)))


async def measure_watch(journal: Journal) -> None:
    """Measure the time from an append until a watcher of everything has the entry."""
    watched = name(10**9)
    index = GenerationIndex(watched, "", "model", time.time_ns(), "", {}, "", 0)
    journal.create(index, g.GenerationStarted(generation_id=watched).SerializeToString())
    await journal.flush()
    # The event of WatchGenerations: of every log of a shared database.
    watcher = journal.follow_logs({journal.id: journal.position})

    async def append_and_wait() -> None:
        journal.append(watched, EntryKind.STEP, encode_step(typical_step(0)))
        await anext(watcher)

    show("watch: an entry, with its commit", await measure_ms(append_and_wait))
    await watcher.aclose()
    journal.finish(watched, b"", FinishIndex(FinishReason.STOP, 0, ""))
    await journal.flush()


async def measure_retention(journal: Journal, num_old: int) -> None:
    sweeper = journal.make_sweeper(RetentionPolicy(holds=(LabelPattern("team", "team 7"),)))
    assert sweeper is not None
    began = time.perf_counter()
    await sweeper.sweep()
    print(f"  a sweep with nothing to delete: {(time.perf_counter() - began) * 1e3:.1f} ms")
    sweeper = journal.make_sweeper(_HALF_A_YEAR)
    assert sweeper is not None
    commits: list[float] = []
    journal.time_commits(commits.append)
    began = time.perf_counter()
    sweeping = asyncio.create_task(sweeper.sweep())
    lags = []
    while not sweeping.done():
        asked = time.perf_counter()
        await asyncio.sleep(0.002)
        lags.append((time.perf_counter() - asked) * 1e3 - 2)
    await sweeping
    seconds = time.perf_counter() - began
    lags.sort()
    print(
        f"  {num_old} generations deleted by age in {seconds:.0f} s "
        f"({num_old / seconds:.0f} a second); the event loop waited {lags[len(lags) // 2]:.2f} ms "
        f"(median), {lags[int(len(lags) * 0.99)]:.2f} ms (p99), {lags[-1]:.1f} ms (most); the "
        f"longest commit took {max(commits) * 1e3:.0f} ms"
    )


async def measure_compaction(directory: Path) -> None:
    began = time.perf_counter()
    report = await asyncio.to_thread(compact_journal, directory)
    print(
        f"  compaction beside the open journal: {report.size_before / 1e6:.0f} MB to "
        f"{report.size_after / 1e6:.0f} MB in {time.perf_counter() - began:.1f} s"
    )


async def measure(
    num_generations: int, num_steps: int, store: str, make_opener: Callable[[str], OpenStore | None]
) -> None:
    """Print the figures of one kind of store.

    Args:
        num_generations: number of generations on record.
        num_steps: number of steps of each.
        store: name of the kind.
        make_opener: returns what opens the journal of a directory; None for SQLite.
    """
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as empty:
        empty_s = await measure_start(Path(empty), make_opener(empty))
    with tempfile.TemporaryDirectory(prefix="whence-bench-") as path:
        directory, open_store = Path(path), make_opener(path)
        began = time.perf_counter()
        size = await fill(directory, num_generations, num_steps, open_store)
        print(
            f"{store}: {num_generations} generations, {num_generations * num_steps} steps, "
            f"{size / 1e6:.0f} MB, recorded in {time.perf_counter() - began:.0f} s"
        )
        more_s = await measure_start(directory, open_store) - empty_s
        verdict = "" if more_s <= START_BOUND_S else f"  ABOVE {START_BOUND_S:g} s"
        print(f"  opening takes {more_s:.2f} s more than an empty journal{verdict}")
        journal = await Journal.open(directory, open_store=open_store)
        await measure_questions(journal, num_generations)
        await measure_watch(journal)
        if open_store is None:
            await measure_retention(journal, num_generations // OLD_SHARE)
            await measure_compaction(directory)
        await journal.close()


def measure_postgres(num_generations: int, num_steps: int) -> None:
    from postgres import PostgresServer

    from whence_server.journal.postgres.store import PostgresStore

    server = PostgresServer(durable=True)

    def make_opener(path: str) -> OpenStore:
        url = server.make_journal_url(path)
        return lambda *_: PostgresStore(url, _LEASE_S)

    try:
        asyncio.run(measure(num_generations, num_steps, POSTGRESQL, make_opener))
    finally:
        server.close()


def run(
    num_generations: int = 100_000,
    num_steps: int = 10,
    stores: Sequence[str] = (SQLITE, POSTGRESQL),
) -> None:
    """Print the figures of a large record."""
    if SQLITE in stores:
        asyncio.run(measure(num_generations, num_steps, SQLITE, lambda _: None))
    if POSTGRESQL in stores:
        measure_postgres(num_generations, num_steps)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("generations", nargs="?", type=int, default=100_000)
    parser.add_argument("steps", nargs="?", type=int, default=10)
    parser.add_argument("--store", action="append", choices=(SQLITE, POSTGRESQL))
    chosen = parser.parse_args()
    run(chosen.generations, chosen.steps, chosen.store or (SQLITE, POSTGRESQL))
