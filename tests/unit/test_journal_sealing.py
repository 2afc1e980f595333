"""Encryption of the journal: what lies on disk, what readers get, and what a deletion leaves."""

import json
import shutil
from pathlib import Path

import apsw
import pytest
from journal_cases import FINISH, append_steps, collect, create, finish, index, whole
from journal_records import FIRST, RUNNING, SECOND, fill, started
from sealed_journals import (
    MASTER,
    OTHER_MASTER,
    Decryption,
    make_options,
    open_keys,
    read_files,
    write_keys,
)

from whence.v1.deletion_pb2 import Deletion
from whence.v1.sealing_pb2 import SealedStart
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import (
    ConfigurationError,
    DeletionPendingError,
    GenerationNotFoundError,
    JournalUnwritableError,
    RecordDamagedError,
)
from whence_server.journal.journal import Journal
from whence_server.journal.rebuild import rebuild_journal
from whence_server.journal.rows import ListFilter
from whence_server.journal.sealing.key_copies import copy_keys
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.verify import verify_journal

CONTENT = (b"prompt ", b"xxxx", b"text ", b"blue", b"team", f"{1:064x}".encode())
"""Content that `journal_records.fill` writes, besides numbers and ids."""


@pytest.fixture
def options(tmp_path):
    return make_options(tmp_path / "master.key")


@pytest.fixture
async def data_dir(tmp_path, options):
    await fill(tmp_path / "data", options)
    return tmp_path / "data"


def execute(data_dir: Path, statement: str, *bindings: object) -> list[tuple]:
    database = apsw.Connection(str(data_dir / "journal.db"))
    rows = database.execute(statement, bindings).fetchall()
    database.close()
    return rows


def find(data_dir: Path, keys=None) -> list[str]:
    return list(map(str, verify_journal(data_dir, keys).findings))


# ---- what readers get ----


async def read_everything(journal: Journal) -> dict[str, object]:
    rows, _ = await journal.list(ListFilter(), 10)
    return {
        "entries": [e for e in await journal.read_committed(0) if e.kind is not EntryKind.DELETED],
        "rows": [(row.index, row.finish, row.damage) for row in rows],
        "first": await journal.read(FIRST),
        "followed": await collect(journal.follow(SECOND, 1)),
        "last": (await journal.read(SECOND, kinds={EntryKind.FINISHED}))[0],
        "unfinished": journal.list_unfinished(),
        "labelled": [
            row.generation_id
            for row in (await journal.list(ListFilter(labels={"team": "blue"}), 10))[0]
        ],
        "numbered": [
            row.generation_id
            for row in (await journal.list(ListFilter(labels={"number": "2"}), 10))[0]
        ],
        "other": await journal.list(ListFilter(labels={"team": "red"}), 10),
    }


async def test_every_reader_gets_what_it_gets_of_a_journal_in_clear(tmp_path, options):
    found = []
    for name, sealing in (("clear", None), ("sealed", options)):
        await fill(tmp_path / name, sealing)
        journal = await Journal.open(tmp_path / name, sealing=sealing)
        found.append(await read_everything(journal))
        await journal.close()
    clear, sealed = found
    assert clear == sealed
    assert clear["labelled"] == [RUNNING, SECOND, FIRST]
    assert clear["unfinished"] == [RUNNING]


async def test_unfinished_generation_is_finished_after_a_restart(data_dir, options, tmp_path):
    journal = await Journal.open(data_dir, sealing=options)
    assert (await journal.get(RUNNING)).index.prompt_preview.startswith("prompt 4")
    journal.finish(RUNNING, b"finished", FINISH)
    await journal.flush()
    assert (await journal.get(RUNNING)).finish == FINISH
    assert [e.payload for e in await journal.read(RUNNING)][-1] == b"finished"
    await journal.close()


async def test_another_implementation_decrypts_the_journal_by_its_documentation(data_dir):
    found = Decryption(data_dir / "journal.db", data_dir / "keys.db")
    assert found.messages.keys() == {FIRST, SECOND, RUNNING}
    assert found.messages[FIRST][0] == started(FIRST, 1).SerializeToString()
    assert [len(messages) for messages in found.messages.values()] == [5, 5, 4]


# ---- what lies on disk ----


async def test_no_byte_of_the_content_is_in_any_file(tmp_path, options):
    journal = await Journal.open(tmp_path / "data", sealing=options)
    create(
        journal, "g", b"quokka prompt", prompt_preview="quokka preview", labels={"numbat": "wombat"}
    )
    append_steps(journal, "g", b"quokka step", b"quokka other step")
    journal.record_occurrence("g", b"quokka occurrence")
    journal.finish("g", b"quokka end", FINISH)
    await journal.flush()
    for content in (b"quokka ", b"wombat", b"numbat", b"a text", b"d" * 64):
        assert content not in read_files(tmp_path / "data"), content
    assert MASTER not in read_files(tmp_path / "data")
    await journal.close()
    assert b"quokka " not in read_files(tmp_path / "data")


async def test_files_of_a_journal_with_every_kind_of_row_hold_no_content(data_dir):
    found = read_files(data_dir)
    assert [content for content in CONTENT if content in found] == []


async def test_a_nonce_is_never_used_twice_even_if_a_crash_lost_entries(tmp_path, options):
    data_dir = tmp_path / "data"
    journal = await Journal.open(data_dir, sealing=options)
    whole(journal, "whole", 20)
    create(journal, "g")
    await journal.flush()
    shutil.copytree(data_dir, tmp_path / "before")
    append_steps(journal, "g", *(b"%d" % i for i in range(20)))
    await journal.close()
    # The copy has lost the steps: the same positions get other content under the same key.
    journal = await Journal.open(tmp_path / "before", sealing=options)
    finish(journal, "g")
    await journal.close()
    used = []
    for directory in (data_dir, tmp_path / "before"):
        used += Decryption(directory / "journal.db", directory / "keys.db").nonces
    # Both have "whole" (20 steps, and two ciphertexts at each end) and the start of "g".
    assert len(used) - len(set(used)) == 24 + 2
    assert len({key for key, _ in used}) == 2


# ---- deletion ----


async def test_old_copy_of_the_journal_opens_kept_generations_and_no_deleted_one(
    data_dir, options, tmp_path
):
    shutil.copytree(data_dir, tmp_path / "copy")
    start = SealedStart.FromString(
        execute(data_dir, "SELECT payload FROM entries WHERE kind = 1 AND payload NOT NULL")[0][0]
    )
    assert start.generation_id == FIRST
    journal = await Journal.open(data_dir, sealing=options)
    await journal.delete(FIRST, "alice")
    await journal.close()
    deletion = Deletion.FromString(
        execute(data_dir, "SELECT payload FROM entries ORDER BY position DESC LIMIT 1")[0][0]
    )
    assert (deletion.generation_id, deletion.destroyed_key_id) == (FIRST, start.key_id)

    shutil.copy(data_dir / "keys.db", tmp_path / "copy" / "keys.db")
    journal = await Journal.open(tmp_path / "copy", sealing=options)
    assert (await journal.read(SECOND))[0].payload == started(SECOND, 2).SerializeToString()
    with pytest.raises(RecordDamagedError, match="key is not in the database of keys"):
        await journal.read(FIRST)
    row = await journal.get(FIRST)
    assert (row.index.prompt_preview, row.index.labels, row.finish.text_preview) == ("", {}, "")
    assert "key is not in the database" in row.damage
    kinds = [e.kind for e in await journal.read_committed(0) if e.generation_id == FIRST]
    assert set(kinds) == {EntryKind.UNREADABLE, EntryKind.CALL}
    await journal.close()
    assert (
        FIRST
        not in Decryption(tmp_path / "copy" / "journal.db", tmp_path / "copy" / "keys.db").messages
    )


def list_keys(data_dir: Path) -> dict[str, bytes]:
    database = apsw.Connection(str(data_dir / "keys.db"))
    found = dict(database.execute("SELECT generation_id, wrapped FROM data_keys"))
    database.close()
    return found


async def test_no_file_keeps_the_wrapped_key_of_a_deleted_generation(tmp_path, options):
    data_dir = tmp_path / "data"
    journal = await Journal.open(data_dir, sealing=options)
    for number in range(200):
        whole(journal, f"generation {number}", 1)
    await journal.flush()
    before = list_keys(data_dir)
    gone = [f"generation {number}" for number in range(0, 200, 5)]
    for generation_id in gone:
        await journal.delete(generation_id)
    files = read_files(data_dir)
    assert all(before[generation_id][12:28] not in files for generation_id in gone)
    assert list_keys(data_dir) == {i: key for i, key in before.items() if i not in gone}
    assert find_deleted(await journal.read_committed(0)) == gone
    await journal.close()


def find_deleted(entries) -> list[str]:
    return [
        Deletion.FromString(e.payload).generation_id for e in entries if e.kind is EntryKind.DELETED
    ]


async def test_key_that_cannot_be_destroyed_yet_is_destroyed_later_or_at_the_next_start(
    data_dir, options, monkeypatch, tmp_path
):
    def fail(_self, _ids):
        raise JournalUnwritableError("the disk is full")

    journal = await Journal.open(data_dir, sealing=options)
    with monkeypatch.context() as patch:
        patch.setattr(KeyDatabase, "destroy", fail)
        with pytest.raises(DeletionPendingError):
            await journal.delete(FIRST)
        shutil.copytree(data_dir, tmp_path / "crashed")
    assert journal.lost is None
    await journal.wait_cleared()
    assert list_keys(data_dir).keys() == {SECOND, RUNNING}
    await journal.close()

    crashed = tmp_path / "crashed"
    assert FIRST in list_keys(crashed)
    assert f"content {FIRST}: it is deleted, and its key is still there" in "\n".join(
        find(crashed, open_keys(crashed, tmp_path / "master.key"))
    )
    await (await Journal.open(crashed, sealing=options)).close()
    assert list_keys(crashed).keys() == {SECOND, RUNNING}
    assert find(crashed) == []


async def test_copied_keys_keep_the_marks_of_deletions(data_dir, tmp_path):
    database = KeyDatabase(data_dir / "keys.db")
    database.doom([FIRST])
    database.close()
    assert copy_keys(data_dir / "keys.db", tmp_path / "copied.db") == 3
    database = KeyDatabase(tmp_path / "copied.db")
    assert database.list_doomed() == [FIRST]
    database.close()


async def test_crash_before_the_deletion_is_on_record_keeps_the_key(data_dir, options):
    database = KeyDatabase(data_dir / "keys.db")
    database.doom([FIRST])
    database.close()
    journal = await Journal.open(data_dir, sealing=options)
    assert len(await journal.read(FIRST)) == 5
    await journal.close()
    database = KeyDatabase(data_dir / "keys.db")
    assert database.list_doomed() == []
    database.close()


# ---- damage ----


async def test_exchanged_payloads_of_one_generation_are_not_decrypted(data_dir, options):
    (one,), (other,) = execute(
        data_dir,
        "SELECT payload FROM entries WHERE kind = 3 AND generation = "
        "(SELECT started_position FROM generations WHERE generation_id = ?) LIMIT 2",
        FIRST,
    )
    for old, new in ((one, b"\0\1!"), (other, one), (b"\0\1!", other)):
        execute(data_dir, "UPDATE entries SET payload = ? WHERE payload = ?", new, old)
    journal = await Journal.open(data_dir, sealing=options)
    with pytest.raises(RecordDamagedError, match="encrypted for another place"):
        await journal.read(FIRST)
    damaged = [e for e in await journal.read_committed(0) if e.kind is EntryKind.UNREADABLE]
    assert len(damaged) == 2
    await journal.close()


async def test_exchanged_columns_of_two_generations_are_named(data_dir, options, tmp_path):
    columns = dict(execute(data_dir, "SELECT generation_id, prompt_preview FROM generations"))
    for generation_id, other in ((FIRST, SECOND), (SECOND, FIRST)):
        execute(
            data_dir,
            "UPDATE generations SET prompt_preview = ? WHERE generation_id = ?",
            columns[other],
            generation_id,
        )
    assert len(find(data_dir)) == 2
    journal = await Journal.open(data_dir, sealing=options)
    row = await journal.get(FIRST)
    assert "cannot be decrypted" in row.damage
    assert row.index.prompt_preview == ""
    await journal.close()
    rebuild_journal(data_dir)
    keys = open_keys(data_dir, tmp_path / "master.key")
    assert find(data_dir, keys) == []


async def test_verification_without_keys_checks_chain_and_columns_and_says_so(data_dir, tmp_path):
    report = verify_journal(data_dir)
    assert report.intact
    assert [note for note in report.notes if "3 generations are encrypted" in note]
    with_keys = verify_journal(data_dir, open_keys(data_dir, tmp_path / "master.key"))
    assert with_keys.intact
    assert with_keys.notes == []
    execute(data_dir, "UPDATE generations SET labels = ? WHERE generation_id = ?", "{}", FIRST)
    execute(data_dir, "UPDATE entries SET payload = x'0001' WHERE kind = 3 AND position = 4")
    found = find(data_dir)
    assert [line for line in found if "labels" in line]
    assert [line for line in found if "broken at entry 4" in line]


async def test_verification_with_keys_finds_a_column_that_its_writer_made_up(data_dir, tmp_path):
    # Somebody with the keys wrote another preview, and the chain anew: here the key is another.
    execute_keys(
        data_dir, "UPDATE data_keys SET key_id = zeroblob(16) WHERE generation_id = ?", FIRST
    )
    keys = open_keys(data_dir, tmp_path / "master.key")
    assert find(data_dir) == []
    assert find(data_dir, keys) == [f"content {FIRST}: its key is not the one that it names"]


def execute_keys(data_dir: Path, statement: str, *bindings: object) -> None:
    database = apsw.Connection(str(data_dir / "keys.db"))
    database.execute(statement, bindings)
    database.close()


# ---- a journal that was in clear ----


async def test_encryption_turned_on_keeps_older_generations_in_clear(tmp_path, options):
    data_dir = tmp_path / "data"
    journal = await Journal.open(data_dir)
    for number in range(0, 10, 2):
        whole(journal, f"clear {number}", start_time_ns=number)
    create(journal, "open")
    await journal.close()
    journal = await Journal.open(data_dir, sealing=options)
    for number in range(1, 10, 2):
        whole(journal, f"sealed {number}", start_time_ns=number, prompt_preview="unseen")
    finish(journal, "open")
    await journal.flush()
    assert b"unseen" not in read_files(data_dir)
    for size in (1, 3, 20):
        found, token = [], ""
        while True:
            rows, token = await journal.list(ListFilter(labels={"team": "blue"}), size, token)
            found += [row.generation_id for row in rows]
            if not token:
                break
        names = ("clear", "sealed")
        assert found == ["open", *(f"{names[n % 2]} {n}" for n in range(9, -1, -1))]
    assert (await journal.read("clear 0"))[0].payload == b"started"
    assert [e.payload for e in await journal.read("open")] == [b"started", b"finished"]
    assert (await journal.get("open")).finish == FINISH
    await journal.delete("clear 0")
    (entry,) = [e for e in await journal.read_committed(0) if e.kind is EntryKind.DELETED]
    assert Deletion.FromString(entry.payload).destroyed_key_id == b""
    assert (await journal.verify()).intact
    await journal.close()


# ---- keys that are missing or wrong ----


async def refuse(data_dir: Path, sealing, match: str) -> None:
    for _ in range(2):  # The first refusal leaves no lock.
        with pytest.raises(ConfigurationError, match=match):
            await Journal.open(data_dir, sealing=sealing)


async def test_start_without_the_key_is_refused(data_dir):
    await refuse(data_dir, None, "has encrypted generations: give their master key")
    (data_dir / "keys.db").unlink()
    await refuse(data_dir, None, "has encrypted generations: give their master key")


async def test_start_with_another_key_is_refused(data_dir, tmp_path):
    other = make_options(write_keys(tmp_path / "other.key", OTHER_MASTER))
    await refuse(data_dir, other, r"other\.key gives the master key \w{16}, and .*keys\.db needs")


async def test_start_without_the_database_of_keys_is_refused(data_dir, options, tmp_path):
    (data_dir / "keys.db").rename(tmp_path / "keys.db")
    await refuse(data_dir, options, "is new, and the journal has encrypted generations")
    elsewhere = make_options(tmp_path / "master.key", tmp_path / "keys.db")
    journal = await Journal.open(data_dir, sealing=elsewhere)
    assert len(await journal.read(FIRST)) == 5
    await journal.close()


async def test_a_refused_start_leaves_no_database_of_keys(data_dir, tmp_path, options):
    for name in ("keys.db", "keys.db-journal"):
        (data_dir / name).unlink(missing_ok=True)
    before = sorted(path.name for path in data_dir.iterdir())
    await refuse(data_dir, options, "is new, and the journal has encrypted generations")
    other = make_options(tmp_path / "no.key", tmp_path / "elsewhere.db")
    (tmp_path / "no.key").write_text("not a key\n")
    await refuse(data_dir, other, "no.key")
    assert sorted(path.name for path in data_dir.iterdir()) == before
    assert not (tmp_path / "elsewhere.db").exists()


async def test_keys_of_another_journal_are_refused(data_dir, options, tmp_path):
    await fill(tmp_path / "another", options)
    shutil.copy(tmp_path / "another" / "keys.db", data_dir / "keys.db")
    await refuse(data_dir, options, "has the keys of journal .* not of this one")
    with pytest.raises(ConfigurationError, match="keys of another journal"):
        find(data_dir, open_keys(data_dir, tmp_path / "master.key"))


async def test_file_that_is_no_database_of_keys_is_refused_and_kept(tmp_path, options):
    path = tmp_path / "other.db"
    database = apsw.Connection(str(path))
    database.execute("CREATE TABLE t (a)")
    database.close()
    before = path.read_bytes()
    other = make_options(tmp_path / "master.key", path)
    await refuse(tmp_path / "data", other, "is another database, not one of keys")
    assert path.read_bytes() == before


# ---- failures ----


async def test_keys_are_on_disk_before_what_they_encrypt(tmp_path, options):
    journal = await Journal.open(tmp_path / "data", sealing=options)
    inner, kept = journal._store._store, []
    write = inner.write

    def look_then_write(batch):
        kept.append((list(list_keys(tmp_path / "data")), len(batch.generations)))
        write(batch)

    inner.write = look_then_write
    whole(journal, "g")
    await journal.flush()
    assert kept == [(["g"], 1)]
    await journal.close()


async def test_full_disk_of_the_keys_stalls_the_journal_and_loses_nothing(
    tmp_path, options, monkeypatch
):
    journal = await Journal.open(tmp_path / "data", sealing=options, patience_s=0.0)
    write, failures = KeyDatabase.write, [True]

    def fail(self, change, *, exclusive=False):
        if failures:
            raise JournalUnwritableError("the disk is full")
        return write(self, change, exclusive=exclusive)

    monkeypatch.setattr(KeyDatabase, "write", fail)
    whole(journal, "g")
    with pytest.raises(JournalUnwritableError):
        await journal.flush()
    failures.clear()
    await journal.wait_committed(4)
    assert (await journal.read("g"))[0].payload == b"started"
    await journal.close()
    journal = await Journal.open(tmp_path / "data", sealing=options)
    assert (await journal.get("g")).index == index("g")
    await journal.close()


async def test_generation_that_is_deleted_while_it_is_read_gives_no_ciphertext(data_dir, options):
    journal = await Journal.open(data_dir, sealing=options)
    store = journal._store
    read = store._store.read

    def read_then_delete(*args, **kwargs):
        entries = read(*args, **kwargs)
        execute(
            data_dir,
            "UPDATE generations SET deleted = 1, secret = NULL WHERE generation_id = ?",
            FIRST,
        )
        execute(
            data_dir,
            "UPDATE entries SET payload = NULL, inner_digest = hash WHERE generation = "
            "(SELECT started_position FROM generations WHERE generation_id = ?)",
            FIRST,
        )
        store._keys.destroy([FIRST])
        return entries

    store._store.read = read_then_delete
    with pytest.raises(GenerationNotFoundError, match="deleted"):
        await journal.read(FIRST)
    await journal.close()


async def test_stored_labels_are_digests(data_dir):
    stored = execute(data_dir, "SELECT labels FROM generations WHERE generation_id = ?", FIRST)
    labels = json.loads(stored[0][0])
    assert all(len(word) == 32 and int(word, 16) for pair in labels.items() for word in pair)
    values = execute(data_dir, "SELECT count(*), count(DISTINCT value) FROM labels")
    assert values == [(6, 4)]  # team=blue has one digest in all, number another in each
