"""Rotation of the master key, while no server runs and beside one."""

from pathlib import Path

import apsw
import pytest
from journal_cases import whole
from journal_records import FIRST, SECOND, fill, started
from sealed_journals import (
    MASTER,
    OTHER_MASTER,
    Decryption,
    make_options,
    open_keys,
    read_files,
    write_keys,
)

from whence_server.domain.errors import ConfigurationError, JournalUnwritableError
from whence_server.domain.key_sources import KeyScheme, KeySource
from whence_server.journal.journal import Journal
from whence_server.journal.rows import ListFilter
from whence_server.journal.sealing import rotation
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.sealing.key_store import KeyRows
from whence_server.journal.sealing.master_keys import MasterKey
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.verify import verify_journal

OLD_ID, NEW_ID = MasterKey(MASTER).id, MasterKey(OTHER_MASTER).id


@pytest.fixture
def key_file(tmp_path):
    return write_keys(tmp_path / "master.key", MASTER)


@pytest.fixture
async def data_dir(tmp_path, key_file):
    await fill(tmp_path / "data", make_options(key_file))
    return tmp_path / "data"


def rotate(data_dir: Path, key_file: Path) -> int:
    database = KeyDatabase(data_dir / "keys.db")
    try:
        return rotation.rotate(database, Masters(KeySource(KeyScheme.FILE, str(key_file)), {}))
    finally:
        database.close()


def count(data_dir: Path) -> dict[str, int]:
    database = KeyDatabase(data_dir / "keys.db", read_only=True)
    try:
        return database.count_by_master()
    finally:
        database.close()


def read_wrapped(data_dir: Path) -> list[bytes]:
    database = apsw.Connection(str(data_dir / "keys.db"))
    facts = database.execute("SELECT value FROM facts WHERE name = 'label_key'")
    keys = database.execute("SELECT wrapped FROM data_keys")
    found = [row[0] for rows in (facts, keys) for row in rows]
    database.close()
    return found


async def test_old_master_key_is_not_needed_after_a_rotation(data_dir, key_file):
    journal_before = (data_dir / "journal.db").read_bytes()
    wrapped_before = read_wrapped(data_dir)
    write_keys(key_file, OTHER_MASTER, MASTER)
    assert rotate(data_dir, key_file) == 3
    assert rotate(data_dir, key_file) == 0
    assert count(data_dir) == {NEW_ID: 3}
    assert (data_dir / "journal.db").read_bytes() == journal_before
    files = read_files(data_dir)
    assert all(wrapped[12:28] not in files for wrapped in wrapped_before)

    write_keys(key_file, OTHER_MASTER)
    journal = await Journal.open(data_dir, sealing=make_options(key_file))
    assert (await journal.read(FIRST))[0].payload == started(FIRST, 1).SerializeToString()
    rows, _ = await journal.list(ListFilter(labels={"number": "2"}), 10)
    assert [row.generation_id for row in rows] == [SECOND]
    await journal.close()
    assert verify_journal(data_dir, open_keys(data_dir, key_file)).intact
    found = Decryption(data_dir / "journal.db", data_dir / "keys.db", OTHER_MASTER)
    assert len(found.messages) == 3
    write_keys(key_file, MASTER)
    with pytest.raises(ConfigurationError, match=f"gives the master key {OLD_ID}"):
        await Journal.open(data_dir, sealing=make_options(key_file))


async def test_rotation_beside_a_running_journal_interrupts_nothing(data_dir, key_file):
    journal = await Journal.open(data_dir, sealing=make_options(key_file))
    whole(journal, "before")
    await journal.flush()
    write_keys(key_file, OTHER_MASTER, MASTER)
    assert rotate(data_dir, key_file) == 4
    whole(journal, "after")
    await journal.flush()
    assert count(data_dir) == {NEW_ID: 5}
    # SECOND was never read by this process: its key is unwrapped by the new master key.
    for generation_id in (SECOND, "before", "after"):
        assert len(await journal.read(generation_id)) == 5
    await journal.close()


async def test_rotation_that_a_server_cannot_follow_stalls_it_until_it_has_the_key(
    data_dir, key_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("whence_server.journal.sealing.masters._READ_AGAIN_S", 0.0)
    journal = await Journal.open(data_dir, sealing=make_options(key_file), patience_s=0.0)
    both = write_keys(tmp_path / "both.key", OTHER_MASTER, MASTER)
    assert rotate(data_dir, both) == 3
    whole(journal, "g")
    with pytest.raises(JournalUnwritableError, match=f"rotated to the master key {NEW_ID}"):
        await journal.flush()
    write_keys(key_file, OTHER_MASTER, MASTER)
    while journal.trouble is not None:
        await journal.trouble_changed.wait()
    assert len(await journal.read("g")) == 5
    await journal.close()


async def test_interrupted_rotation_needs_both_keys_and_is_ended_by_a_second(
    data_dir, key_file, monkeypatch
):
    monkeypatch.setattr(rotation, "_BATCH", 1)
    rewrap, calls = KeyRows.rewrap, []

    def interrupt(rows, keys):
        rewrap(rows, keys)
        calls.append(keys)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(KeyRows, "rewrap", interrupt)
    write_keys(key_file, OTHER_MASTER, MASTER)
    with pytest.raises(KeyboardInterrupt):
        rotate(data_dir, key_file)
    assert count(data_dir) == {OLD_ID: 2, NEW_ID: 1}
    journal = await Journal.open(data_dir, sealing=make_options(key_file))
    assert len(await journal.read(FIRST)) == 5
    await journal.close()
    for one in (MASTER, OTHER_MASTER):
        write_keys(key_file, one)
        with pytest.raises(ConfigurationError, match="until `whence-server key rotate` has ended"):
            await Journal.open(data_dir, sealing=make_options(key_file))
    write_keys(key_file, OTHER_MASTER, MASTER)
    assert rotate(data_dir, key_file) == 2


async def test_rotation_without_the_old_key_is_refused_and_changes_nothing(data_dir, key_file):
    write_keys(key_file, OTHER_MASTER)
    before = (data_dir / "keys.db").read_bytes()
    with pytest.raises(ConfigurationError, match=f"does not give the master key {OLD_ID}"):
        rotate(data_dir, key_file)
    assert (data_dir / "keys.db").read_bytes() == before
