"""Journals after the kill of a process that was writing."""

import signal
import subprocess
import sys

import pytest
from journal_cases import append_steps, collect, finish

from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability

WRITER = """
import asyncio, pathlib, sys
from whence_server.domain.entries import EntryKind
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability, GenerationIndex, FinishIndex
from whence_server.domain.decoding import FinishReason

def say(*words):
    print(*words, flush=True)

async def follow(journal, generation_id):
    async for batch in journal.follow(generation_id):
        say("seen", batch[-1].position)

async def main(directory, durability):
    journal = await Journal.open(pathlib.Path(directory), durability=Durability(durability))
    names = ["g0", "g1", "g2"]
    for name in names + ["done"]:
        journal.create(GenerationIndex(name, "", "m", 1, "d", {}, "", 0), name.encode())
    journal.finish("done", b"end", FinishIndex(FinishReason.STOP, 0, ""))
    following = [asyncio.ensure_future(follow(journal, name)) for name in names]
    step = 0
    while True:
        for name in names:
            journal.append(name, EntryKind.STEP, b"step %d " % step + b"x" * 200)
        step += 1
        await journal.wait_writable()
        await asyncio.sleep(0)
        if step % 50 == 0:
            await journal.flush()
            say("committed", journal.committed_position)

asyncio.run(main(*sys.argv[1:]))
"""


def killed_while_writing(directory, durability, num_lines):
    """Return the highest positions that the process printed as (committed, shown)."""
    command = [sys.executable, "-c", WRITER, str(directory), durability.value]
    said = {"committed": 0, "seen": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for num, line in enumerate(process.stdout):
            if num >= num_lines and said["committed"]:
                break
            what, position = line.split()
            said[what] = max(said[what], int(position))
        process.send_signal(signal.SIGKILL)
        # What it said before it died counts as well; its last line may be torn.
        for line in process.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                what, position = line.split()
                said[what] = max(said[what], int(position))
        assert process.wait() == -signal.SIGKILL
    return said["committed"], said["seen"]


@pytest.mark.parametrize("durability", Durability)
async def test_committed_entries_survive_a_kill(tmp_path, durability):
    for num_lines in (500, 700):
        directory = tmp_path / str(num_lines)
        committed, seen = killed_while_writing(directory, durability, num_lines)
        journal = await Journal.open(directory, durability=durability)
        assert journal.position >= committed > 0
        if durability is Durability.STRICT:
            assert journal.position >= seen > 0
        report = await journal.verify()
        assert (report.intact, report.num_entries) == (True, journal.position)
        assert journal.list_unfinished() == ["g0", "g1", "g2"]
        position = journal.position
        for name in journal.list_unfinished():
            before = await journal.read(name, limit=10**6)
            assert [e.offset for e in before] == list(range(1, len(before) + 1))
            assert [e.payload.split()[1] for e in before[1:]] == [
                b"%d" % i for i in range(len(before) - 1)
            ]
            assert journal.append(name, EntryKind.STEP, b"on") == len(before) + 1
            append_steps(journal, name, b"and on")
            finish(journal, name)
            entries = await collect(journal.follow(name))
            assert [e.offset for e in entries] == list(range(1, len(before) + 4))
        assert journal.position == position + 9
        assert journal.list_unfinished() == []
        report = await journal.verify()
        assert (report.intact, report.num_entries) == (True, position + 9)
        await journal.close()
