"""Deletions that are cut short: their content leaves the disk, and their evidence stays on it."""

import asyncio
from functools import partial

import apsw
import pytest
from journal_cases import create, whole
from journal_records import FIRST
from journal_records import fill as fill_records
from sealed_journals import make_options

from whence_server.domain.errors import (
    DeletionPendingError,
    JournalFullError,
    JournalUnwritableError,
)
from whence_server.domain.retention import DeletionRequest
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability
from whence_server.journal.sealing.key_database import KeyDatabase

PROMPT = b"a prompt that nobody may find again"


@pytest.fixture
async def journal(tmp_path, monkeypatch):
    monkeypatch.setattr("whence_server.journal.deletion._CLEAR_AGAIN_S", 0.01)
    journal = await Journal.open(tmp_path / "data")
    whole(journal, "g", payload=PROMPT)
    await journal.flush()
    yield journal
    await journal.close()


async def require_gone(journal, data_dir, generation_id="g"):
    """Wait for the server to end the deletion by itself, and look for the content."""
    await journal.flush()
    async with asyncio.timeout(30):
        await journal.wait_cleared()
    assert (await journal.look_up(generation_id)).deleted
    assert [path.name for path in data_dir.iterdir() if PROMPT in path.read_bytes()] == []


async def test_content_is_cleared_if_the_caller_hangs_up(journal, tmp_path, monkeypatch):
    deletion = asyncio.create_task(journal.delete("g"))
    append = journal._log.append_deletion

    def append_and_hang_up(*arguments):
        append(*arguments)
        deletion.cancel()

    monkeypatch.setattr(journal._log, "append_deletion", append_and_hang_up)
    with pytest.raises(asyncio.CancelledError):
        await deletion
    await require_gone(journal, tmp_path / "data")


async def test_content_is_cleared_once_the_disk_has_space_again(journal, tmp_path, monkeypatch):
    write, is_full = journal._store.write, True

    def write_if_there_is_space(batch):
        if is_full and batch.deleted:
            raise JournalFullError("database or disk is full")
        write(batch)

    monkeypatch.setattr(journal._store, "write", write_if_there_is_space)
    with pytest.raises(JournalUnwritableError):
        await journal.delete("g")
    is_full = False
    while journal.trouble is not None:
        await journal.trouble_changed.wait()
    await require_gone(journal, tmp_path / "data")


async def test_content_is_cleared_if_a_later_deletion_of_a_sweep_fails(
    journal, tmp_path, monkeypatch
):
    whole(journal, "h")
    await journal.flush()
    append = journal._log.append_deletion

    def append_the_first(generation_id, payload):
        if generation_id != "g":
            raise JournalUnwritableError("the disk is full")
        append(generation_id, payload)

    monkeypatch.setattr(journal._log, "append_deletion", append_the_first)
    with pytest.raises(JournalUnwritableError):
        await journal._deletion.delete_all([DeletionRequest("g"), DeletionRequest("h")])
    await require_gone(journal, tmp_path / "data")
    assert not (await journal.look_up("h")).deleted


async def test_a_caller_that_hangs_up_is_not_kept_at_its_limit(journal, monkeypatch):
    create(journal, "owned", owner="alice")
    whole(journal, "mine", owner="alice")
    await journal.flush()
    noted = []
    monkeypatch.setattr(journal.stored, "note_deletion", noted.append)
    deletion = asyncio.create_task(journal.delete("mine"))
    monkeypatch.setattr(journal._deletion, "_clear", partial(_cancel, deletion))
    with pytest.raises(asyncio.CancelledError):
        await deletion
    assert noted == ["alice"]


async def _cancel(task):
    task.cancel()
    await asyncio.sleep(0)


class Sync(apsw.VFSFile):
    """A file of SQLite's that notes when it is synced."""

    def __init__(self, name, flags, events):
        # The database has a name with parameters, its log a text.
        path = name if isinstance(name, str) else name.filename()
        self._name, self._events = path, events
        super().__init__("", name, flags)

    def xSync(self, flags):  # noqa: N802 - the name is apsw's
        self._events.append(self._name.rpartition("/")[2])
        return super().xSync(flags)


class SyncVFS(apsw.VFS):
    """SQLite's file system, with a list of the files that are synced."""

    def __init__(self):
        self.events = []
        super().__init__("noting-syncs", "")

    def xOpen(self, name, flags):  # noqa: N802 - the name is apsw's
        return Sync(name, flags, self.events)


@pytest.mark.parametrize("durability", Durability)
async def test_deletion_is_on_disk_before_its_key_is_destroyed(tmp_path, monkeypatch, durability):
    vfs = SyncVFS()
    destroy = KeyDatabase.destroy

    def note_and_destroy(self, ids):
        vfs.events.append("keys destroyed")
        destroy(self, ids)

    options = make_options(tmp_path / "master.key")
    await fill_records(tmp_path / "data", options)
    monkeypatch.setattr(apsw, "Connection", partial(apsw.Connection, vfs="noting-syncs"))
    monkeypatch.setattr(KeyDatabase, "destroy", note_and_destroy)
    journal = await Journal.open(tmp_path / "data", sealing=options, durability=durability)
    connection = journal._store.stored._connection
    connection.set_busy_timeout(1)
    # A backup or a shell: it blocks the checkpoint, which would sync the log too.
    reader = apsw.Connection(str(tmp_path / "data" / "journal.db"))
    # The log's beginning is synced whatever comes first.
    journal.record_call("", b"")
    await journal.flush()
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM entries").fetchall()
    journal._store.truncate_log()
    vfs.events.clear()
    with pytest.raises(DeletionPendingError):
        await journal.delete(FIRST)
    before = vfs.events[: vfs.events.index("keys destroyed")]
    assert before[-1] == "journal.db-wal"
    assert connection.pragma("synchronous") == (2 if durability is Durability.STRICT else 1)
    reader.close()
    await journal.wait_cleared()
    await journal.close()
    vfs.unregister()
