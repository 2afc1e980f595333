"""Full or failing disks: no entry is lost, new generations are refused, writing resumes."""

import asyncio
import os
import subprocess
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import apsw
import pytest
from journal_cases import append_steps, collect, create, finish, settle, whole

from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    JournalError,
    JournalFullError,
    JournalLostError,
    JournalUnwritableError,
)
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability, ListFilter

LARGE = b"x" * 20_000


@pytest.fixture(params=Durability)
async def journal(request, tmp_path):
    journal = await Journal.open(tmp_path / "data", durability=request.param, patience_s=0.0)
    yield journal
    with suppress(JournalError):
        await journal.close()


def fill(journal):
    """Limit the database to its present number of pages."""
    connection = journal._store._connection
    connection.pragma("max_page_count", connection.pragma("page_count"))


def empty(journal):
    journal._store._connection.pragma("max_page_count", 2**30)


async def stalled(journal, generation_id="running"):
    """Start a generation that no longer fits on the disk."""
    create(journal, generation_id)
    await journal.flush()
    fill(journal)
    append_steps(journal, generation_id, *(LARGE for _ in range(20)))
    while journal.trouble is None:
        await journal.trouble_changed.wait()


async def test_full_disk_refuses_new_generations_and_keeps_entries(journal):
    whole(journal, "before")
    await stalled(journal)
    assert isinstance(journal.trouble, JournalFullError)
    assert journal.lost is None
    for new in (
        lambda: create(journal, "another"),
        journal.check_writable,
    ):
        with pytest.raises(JournalFullError, match="disk is full"):
            new()
    for waiting in (journal.flush(), journal.delete("before")):
        with pytest.raises(JournalFullError):
            await waiting
    assert len(await journal.read("before")) == 5
    assert len(await collect(journal.follow("before"))) == 5
    rows, _ = await journal.list(ListFilter(), 10)
    assert {row.generation_id for row in rows} == {"before", "running"}
    assert (await journal.verify()).intact


async def test_writing_resumes_when_the_disk_has_room(journal):
    await stalled(journal)
    waiting = asyncio.ensure_future(journal.wait_writable())
    watcher = journal.follow_all(0)
    await anext(watcher)
    append_steps(journal, "running", b"meanwhile")
    journal.record_call("", b"a call")
    finish(journal, "running")
    await settle()
    assert not waiting.done()
    empty(journal)
    await waiting
    await journal.flush()
    assert journal.trouble is None
    whole(journal, "after")
    await journal.flush()
    entries = await journal.read("running")
    assert [e.offset for e in entries] == list(range(1, 24))
    assert [e.payload for e in entries[-2:]] == [b"meanwhile", b"finished"]
    report = await journal.verify()
    assert (report.intact, report.num_entries) == (True, journal.position)


async def test_stalled_followers_get_the_offset_on_disk(journal):
    await stalled(journal)
    follower = journal.follow("running")
    seen = []

    async def read():
        async for batch in follower:
            seen.extend(batch)

    with pytest.raises(JournalFullError) as caught:
        await read()
    assert caught.value.metadata["recorded_offset"] == "1"
    strict = journal._log._strict
    assert [e.offset for e in seen] == ([1] if strict else list(range(1, 22)))
    empty(journal)
    await journal.wait_writable()
    rest = journal.follow("running", seen[-1].offset)
    finish(journal, "running")
    assert (await collect(rest))[-1].kind is EntryKind.FINISHED


async def test_stall_within_the_patience_is_not_reported(tmp_path):
    journal = await Journal.open(tmp_path, patience_s=3600.0)
    await stalled(journal)
    following = asyncio.ensure_future(collect(journal.follow("running")))
    await settle()
    assert not following.done()
    empty(journal)
    finish(journal, "running")
    assert (await following)[-1].kind is EntryKind.FINISHED
    await journal.close()


async def test_pending_calls_are_bounded_during_a_stall(tmp_path, caplog):
    journal = await Journal.open(tmp_path, max_pending_bytes=100_000, patience_s=0.0)
    await stalled(journal)
    num_bytes = journal._log.writer.pending.num_bytes
    for _ in range(50):
        journal.record_call("", b"y" * 10_000)
    for _ in range(3):
        journal._log.record_audit(b"y" * 10_000)
    assert journal._log.writer.pending.num_bytes == num_bytes
    empty(journal)
    await journal.wait_writable()
    await journal.flush()
    assert "50 calls were not recorded" in caplog.text
    assert "3 audit records were left out" in caplog.text
    await journal.close()


async def test_cursor_moved_during_a_stall_is_committed_later(journal):
    whole(journal, "before")
    await journal.flush()
    fill(journal)
    await stalled(journal)
    journal.advance("otlp", 3)
    empty(journal)
    await journal.wait_writable()
    await journal.flush()
    database = apsw.Connection(journal._store._path, flags=apsw.SQLITE_OPEN_READONLY)
    assert database.execute("SELECT position FROM cursors").get == 3
    database.close()


async def test_close_on_a_full_disk_retries_and_logs_the_loss(journal, caplog):
    await stalled(journal)
    with pytest.raises(JournalLostError, match="full"):
        await journal.close()
    assert "are not on disk" in caplog.text


async def test_close_after_the_disk_has_room_loses_nothing(tmp_path):
    journal = await Journal.open(tmp_path)
    await stalled(journal)
    empty(journal)
    await journal.close()
    journal = await Journal.open(tmp_path)
    assert len(await journal.read("running")) == 21
    await journal.close()


async def test_permanent_error_is_final(journal):
    create(journal, "g")
    await journal.flush()
    journal._store._connection.execute("DROP TABLE cursors; DROP TABLE entries")
    append_steps(journal, "g", b"1")
    following = asyncio.ensure_future(collect(journal.follow("g")))
    with pytest.raises(JournalLostError, match="no such table"):
        await journal.flush()
    for waiting in (following, journal.wait_writable(), collect(journal.follow_all())):
        with pytest.raises(JournalLostError):
            await waiting
    with pytest.raises(JournalLostError):
        append_steps(journal, "g", b"2")
    assert journal.lost is journal.trouble


class FailingFile(apsw.VFSFile):
    def xWrite(self, data, offset):  # noqa: N802 - SQLite's name
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802 - SQLite's name
        if self.faults and (fault := self.faults.pop(0)):
            raise fault
        super().xSync(flags)


class FailingVFS(apsw.VFS):
    """VFS file that fails single writes and syncs, in the order of `faults`; None succeeds."""

    def __init__(self):
        self.faults = []
        super().__init__("failing", "")

    def xOpen(self, name, flags):  # noqa: N802 - SQLite's name
        file = FailingFile("", name, flags)
        file.faults = self.faults
        return file


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError, apsw.ReadOnlyError])
async def test_fault_at_any_single_write_loses_no_entry(tmp_path, monkeypatch, durability, error):
    vfs = FailingVFS()
    connect = apsw.Connection
    monkeypatch.setattr(
        apsw, "Connection", lambda path, **more: connect(path, vfs="failing", **more)
    )
    journal = await Journal.open(tmp_path, durability=durability)
    for number in range(8):
        vfs.faults[:] = [*[None] * number, error("injected")]
        whole(journal, f"g{number}")
        await journal.wait_writable()
        while journal.committed_position != journal.position:
            await journal.wait_committed(journal.committed_position)
    vfs.faults.clear()
    report = await journal.verify()
    assert (report.intact, report.num_entries) == (True, 40)
    await journal.close()
    journal = await Journal.open(tmp_path, durability=durability)
    assert (await journal.verify()).num_entries == 40
    await journal.close()


@asynccontextmanager
async def small_disk(directory: Path):
    """Mount a file system of 1 MiB."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(directory)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a small file system is not allowed here: needs CAP_SYS_ADMIN")
    try:
        yield
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(directory)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_full_file_system_recovers(tmp_path):
    async with small_disk(tmp_path / "disk"):
        ballast = tmp_path / "disk" / "ballast"
        ballast.write_bytes(b"0" * (500 << 10))
        journal = await Journal.open(tmp_path / "disk" / "data", patience_s=0.0)
        create(journal, "g")
        for _ in range(38):
            append_steps(journal, "g", LARGE)
        while journal.trouble is None:
            await journal.trouble_changed.wait()
        assert isinstance(journal.trouble, JournalUnwritableError)
        with pytest.raises(JournalUnwritableError):
            create(journal, "h")
        ballast.unlink()
        finish(journal, "g")
        # 760 kB in the log and once more in the database do not fit: the log is enough.
        journal._store._connection.pragma("wal_autocheckpoint", 0)
        await journal.wait_writable()
        assert len(await journal.read("g")) == 40
        assert (await journal.verify()).intact
        with suppress(JournalError):
            await journal.close()
