"""Time of a look-up while twelve callers list with filters that match no generation.

    python tests/benchmarks/lists.py [GENERATIONS]

Makes a journal of 61,000 generations in a temporary directory, and asks it without a network.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from large_journal import large_journal

from whence_server.journal.journal import Journal
from whence_server.journal.rows import ListFilter

NUM_CALLERS, NUM_LOOK_UPS = 12, 200
FILTERS = {
    "32 labels that none has": ListFilter(labels={f"label {i}": "none" for i in range(32)}),
    "a label that all have, and a model that none has": ListFilter(
        labels={"team": "blue"}, model="none"
    ),
    "no filter": ListFilter(),
}


async def look_ups_ms(journal: Journal, num_generations: int) -> list[float]:
    taken = []
    for number in range(NUM_LOOK_UPS):
        begin = time.perf_counter()
        await journal.get(f"00000000-0000-4000-8000-{1 + number * 97 % num_generations:012d}")
        taken.append((time.perf_counter() - begin) * 1e3)
        await asyncio.sleep(0.005)
    return taken


async def list_for_ever(journal: Journal, wanted: ListFilter) -> None:
    while True:
        await journal.list(wanted, 50)


async def main(num_generations: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        large_journal(Path(directory), num_generations)
        journal = await Journal.open(Path(directory))
        print(f"{num_generations} generations, {NUM_CALLERS} callers; a look-up's time in ms")
        for name, wanted in {"nobody lists": None, **FILTERS}.items():
            callers = [
                asyncio.create_task(list_for_ever(journal, wanted))
                for _ in range(NUM_CALLERS if wanted else 0)
            ]
            taken = sorted(await look_ups_ms(journal, num_generations))
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
            p99 = taken[int(len(taken) * 0.99)]
            print(f"{name}: median {statistics.median(taken):.2f}, p99 {p99:.2f}")
        await journal.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 61_000))
