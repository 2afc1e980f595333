"""Space of deleted content goes back to the file system, beside a running server too."""

import asyncio
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import apsw
import pytest
from aged_journal import add, fill, list_kept, name

from whence_server.cli import main
from whence_server.domain.errors import ConfigurationError
from whence_server.journal.journal import Journal
from whence_server.journal.retention import compact
from whence_server.journal.retention.compact import compact_journal
from whence_server.journal.verify import verify_journal

SMALL = 2_500_000
GENERATIONS = tuple((i, 30 - i, {}) for i in range(1, 21))


def size_of(directory) -> int:
    return (directory / "journal.db").stat().st_size


async def fill_and_delete(directory, keep: int) -> None:
    """Make a journal of about 8 MB, and delete all generations but the newest."""
    await fill(directory, *GENERATIONS, num_steps=500, step_bytes=700)
    journal = await Journal.open(directory)
    for number in range(1, 21 - keep):
        await journal.delete(name(number))
    await journal.close()


async def test_a_journal_shrinks_and_is_the_same(tmp_path) -> None:
    await fill_and_delete(tmp_path, keep=2)
    before, report_before = size_of(tmp_path), verify_journal(tmp_path)
    report = compact_journal(tmp_path)
    assert before > 3 * SMALL
    assert size_of(tmp_path) < SMALL
    assert (report.size_before, report.size_after) == (before, size_of(tmp_path))
    assert report.used_bytes == size_of(tmp_path)
    assert report.is_complete
    after = verify_journal(tmp_path)
    assert after.findings == []
    assert (after.head, after.num_entries) == (report_before.head, report_before.num_entries)
    assert compact_journal(tmp_path).size_after == report.size_after


async def test_a_journal_shrinks_while_generations_are_recorded_and_read(tmp_path) -> None:
    await fill_and_delete(tmp_path, keep=2)
    journal = await Journal.open(tmp_path)
    done = threading.Event()
    reports = []

    def work() -> None:
        try:
            reports.append(compact_journal(tmp_path))
        finally:
            done.set()

    thread = threading.Thread(target=work)
    thread.start()
    number = 100
    while not done.is_set():
        add(journal, number, 0)
        await journal.flush()
        assert len(await journal.read(name(20), limit=10)) == 10
        number += 1
    thread.join()
    assert reports[0].size_before > 3 * SMALL
    assert reports[0].used_bytes < SMALL
    # Commits went through while the file was written anew.
    assert number > 105
    assert await list_kept(journal, range(100, number)) == list(range(100, number))
    assert (await journal.verify()).intact
    await journal.close()
    assert size_of(tmp_path) < SMALL
    assert verify_journal(tmp_path).findings == []


async def test_a_copy_of_a_journal_shrinks_beside_a_server_too(tmp_path) -> None:
    first, copy = tmp_path / "first", tmp_path / "copy"
    await fill(first, *GENERATIONS[:2], num_steps=500, step_bytes=700)
    assert main(["backup", "--from", str(first), "--to", str(copy)]) == 0
    journal = await Journal.open(copy)
    await journal.delete(name(1))
    before = size_of(copy)
    assert compact_journal(copy).is_complete
    assert size_of(copy) < 0.7 * before
    await journal.close()
    assert verify_journal(copy).findings == []


async def test_a_process_that_reads_delays_the_end_and_is_told(
    tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(compact, "_BUSY_MS", 10)
    await fill_and_delete(tmp_path, keep=2)
    reader = apsw.Connection(str(tmp_path / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchall()
    report = compact_journal(tmp_path)
    assert not report.is_complete
    assert any("another process reads" in line for line in report.describe())
    reader.close()
    assert compact_journal(tmp_path).is_complete
    assert size_of(tmp_path) < SMALL


async def test_a_server_goes_on_while_another_process_reads(tmp_path) -> None:
    await fill_and_delete(tmp_path, keep=2)
    journal = await Journal.open(tmp_path)
    reader = apsw.Connection(str(tmp_path / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM entries").fetchall()
    compaction = asyncio.create_task(asyncio.to_thread(compact_journal, tmp_path))
    number = 100
    while not compaction.done():
        add(journal, number, 0)
        await journal.flush()  # would raise in a stall
        number += 1
    assert not (await compaction).is_complete
    reader.close()
    await journal.close()


async def make_old_journal(directory, keep: int = 2) -> None:
    """Make a journal as earlier versions did, which cannot give pages back."""
    connection = apsw.Connection(str(directory / "journal.db"))
    connection.pragma("auto_vacuum", "NONE")
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE first (a); DROP TABLE first")
    connection.close()
    await fill_and_delete(directory, keep)
    connection = apsw.Connection(str(directory / "journal.db"))
    assert connection.pragma("auto_vacuum") == 0
    connection.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are looked up there")
async def test_a_rewriting_takes_a_temporary_file_and_no_memory(tmp_path, monkeypatch) -> None:
    await make_old_journal(tmp_path, keep=15)
    found: set[str] = set()

    def look_at_open_files() -> bool:
        for file in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                found.add(str(file.readlink()))
        return False

    def connect(*arguments, **options):
        connection = connect_to(*arguments, **options)
        connection.set_progress_handler(look_at_open_files, 1_000)
        return connection

    connect_to = apsw.Connection
    monkeypatch.setattr(apsw, "Connection", connect)
    compact_journal(tmp_path)
    # SQLite removes the name at once.
    assert [it for it in found if it.startswith(str(tmp_path)) and it.endswith("(deleted)")]
    assert apsw.Connection(":memory:").execute("PRAGMA temp_store_directory").fetchall() == []


async def test_a_journal_of_an_earlier_version_is_rewritten_without_a_server(tmp_path) -> None:
    await make_old_journal(tmp_path)
    journal = await Journal.open(tmp_path)
    with pytest.raises(ConfigurationError, match="stop the server and run this command once"):
        compact_journal(tmp_path)
    await journal.close()
    head = verify_journal(tmp_path).head
    compact_journal(tmp_path)
    assert size_of(tmp_path) < SMALL
    report = verify_journal(tmp_path)
    assert (report.findings, report.head) == ([], head)
    # From now on it shrinks beside a server.
    journal = await Journal.open(tmp_path)
    await journal.delete(name(19))
    assert compact_journal(tmp_path).is_complete
    await journal.close()
    assert verify_journal(tmp_path).findings == []


async def test_a_rewrite_without_space_is_refused(tmp_path, monkeypatch) -> None:
    await make_old_journal(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**9, 10**9 - 1_000, 1_000)
    )
    with pytest.raises(ConfigurationError, match=r"needs [\d.]+MB of free space, and the disk has"):
        compact_journal(tmp_path)
    assert verify_journal(tmp_path).findings == []


def test_a_directory_without_a_journal_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="holds no journal"):
        compact_journal(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3])
async def test_a_killed_compaction_leaves_a_whole_journal(tmp_path, seconds: float) -> None:
    await fill_and_delete(tmp_path, keep=2)
    head = verify_journal(tmp_path).head
    script = (
        "import sys, threading, os\n"
        "from pathlib import Path\n"
        "from whence_server.journal.retention.compact import compact_journal\n"
        "threading.Timer(float(sys.argv[2]), os._exit, (9,)).start()\n"
        "compact_journal(Path(sys.argv[1]))\n"
        "os._exit(9)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(seconds)]
    done = await asyncio.to_thread(subprocess.run, command, check=False)
    assert done.returncode == 9
    report = verify_journal(tmp_path)
    assert (report.findings, report.head) == ([], head)
    compact_journal(tmp_path)
    assert size_of(tmp_path) < SMALL
