"""A disk whose fsync fails: the journal says so under either durability, and nothing is lost.

The calls of a process of its own fail, as they do where a disk is broken.
"""

import os
import subprocess
import sys
from errno import EIO
from pathlib import Path

import pytest
from fault_shim import FaultShim

SUPPORT = Path(__file__).parents[1] / "support"
MOST_ENTRIES = 2_000
"""Entries of 20 kB after which the trouble has to be noticed: 40 MB."""
JOURNAL = f"""
import asyncio, sys
from pathlib import Path

from journal_cases import append_steps, create, finish
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability

async def main():
    journal = await Journal.open(Path(sys.argv[1]), durability=Durability(sys.argv[2]))
    create(journal, "g")
    await journal.flush()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    number = 0
    while journal.trouble is None and number < {MOST_ENTRIES}:
        append_steps(journal, "g", b"x" * 20_000)
        number += 1
        await asyncio.sleep(0.001)
        if not number % 50 and journal.trouble is None:
            await journal.wait_writable(in_stall=False)
    print(type(journal.trouble).__name__, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await journal.wait_writable()
    finish(journal, "g")
    await journal.flush()
    report = await journal.verify()
    print(report.intact and report.num_entries == number + 2, flush=True)
    await journal.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("durability", ["group", "strict"])
def test_a_failing_fsync_is_told_and_passes(tmp_path: Path, durability: str) -> None:
    shim = FaultShim(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", JOURNAL, str(tmp_path / "data"), durability],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | shim.environment | {"PYTHONPATH": str(SUPPORT)},
    ) as journal:
        assert journal.stdin is not None
        assert journal.stdout is not None
        assert journal.stdout.readline() == "ready\n"
        shim.fail_fsync(EIO)
        print(file=journal.stdin, flush=True)
        assert journal.stdout.readline() == "JournalUnwritableError\n"
        shim.fail_fsync(0)
        print(file=journal.stdin, flush=True)
        assert journal.stdout.readline() == "True\n"
        journal.stdin.close()
        assert journal.wait(60) == 0
