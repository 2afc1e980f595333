"""The hash chain: faults that it detects, and its state and the disk's after a deletion."""

import asyncio
import hashlib
import hmac
import uuid

import apsw
import pytest
from journal_cases import append_steps, collect, create, finish, index, take, whole

from whence.v1.deletion_pb2 import Deletion
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import DeletionPendingError, GenerationNotFoundError
from whence_server.journal.chain import hash_genesis
from whence_server.journal.evidence import open_evidence
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability, ListFilter
from whence_server.journal.verify import walk_chain

PROMPT = b"a prompt that nobody may find again"
# 1 is a call of no generation; 2 to 5 is a, 6 its call; 7 to 9 b; 10 the start of c, which runs.
NUM_ENTRIES = 10


@pytest.fixture
async def data_dir(tmp_path):
    journal = await Journal.open(tmp_path)
    journal.record_call("", b"call")
    whole(journal, "a", 2)
    journal.record_call("a", b"call a")
    whole(journal, "b", 1)
    create(journal, "c")
    await journal.close()
    return tmp_path


def change(data_dir, *statements):
    database = apsw.Connection(str(data_dir / "journal.db"))
    for statement in statements:
        database.execute(statement)
        assert database.changes() > 0
    database.close()


async def verified(data_dir):
    with open_evidence(data_dir) as evidence:
        (*_, report) = walk_chain(evidence.connection)
    return report


async def test_an_untouched_chain_verifies(data_dir):
    report = await verified(data_dir)
    assert (report.num_entries, report.intact, report.detail) == (NUM_ENTRIES, True, "")


async def test_chain_hashes_equal_the_documented_formula(data_dir):
    database = apsw.Connection(str(data_dir / "journal.db"))
    ((writer_id,),) = database.execute("SELECT writer_id FROM writers")
    assert uuid.UUID(bytes=writer_id).version == 4
    secrets = dict(database.execute("SELECT started_position, secret FROM generations"))
    assert len(set(secrets.values())) == 3
    assert {len(secret) for secret in secrets.values()} == {32}
    last = hashlib.sha256(b"whence journal v1" + writer_id).digest()
    assert last == hash_genesis(writer_id)
    rows = database.execute("SELECT kind, generation, payload, hash FROM entries ORDER BY position")
    for kind, generation, payload, stored in rows.fetchall():
        key = b"" if kind == EntryKind.CALL else secrets[generation]
        inner = hmac.new(key, payload, hashlib.sha256).digest()
        last = hashlib.sha256(last + bytes([kind]) + inner).digest()
        assert last == stored
    database.close()
    assert (await verified(data_dir)).head == last.hex()


@pytest.mark.parametrize(
    ("statement", "position", "detail"),
    [
        ("UPDATE entries SET payload = x'00' WHERE position = 3", 3, "hash"),
        ("UPDATE entries SET payload = x'00' WHERE position = 1", 1, "hash"),
        ("UPDATE entries SET kind = 2 WHERE position = 3", 3, "hash"),
        ("UPDATE entries SET kind = 77 WHERE position = 3", 3, "kind 77"),
        ("UPDATE entries SET hash = zeroblob(32) WHERE position = 10", 10, "hash"),
        ('UPDATE entries SET "offset" = 9 WHERE position = 4', 4, "offset 9, expected 3"),
        ('UPDATE entries SET "offset" = 1 WHERE position = 6', 6, "should have none"),
        ("UPDATE entries SET generation = 7 WHERE position = 3", 3, "hash"),
        ("UPDATE generations SET secret = zeroblob(32) WHERE generation_id = 'b'", 7, "hash"),
        ("DELETE FROM entries WHERE position = 1", 1, "missing"),
        ("DELETE FROM entries WHERE position = 5", 5, "missing"),
        ("UPDATE entries SET payload = NULL WHERE position = 4", 4, "neither"),
    ],
)
async def test_one_changed_row_is_found(data_dir, statement, position, detail):
    change(data_dir, statement)
    report = await verified(data_dir)
    assert report.broken_position == position
    assert report.num_entries == position - 1
    assert detail in report.detail


async def test_exchanged_entries_are_found(data_dir):
    change(
        data_dir,
        "UPDATE entries SET position = -1 WHERE position = 3",
        "UPDATE entries SET position = 3 WHERE position = 4",
        "UPDATE entries SET position = 4 WHERE position = -1",
    )
    assert (await verified(data_dir)).broken_position == 3


async def test_removed_entry_is_found_if_later_positions_are_shifted(data_dir):
    change(
        data_dir,
        "DELETE FROM entries WHERE position = 4",
        "UPDATE entries SET position = -position + 1 WHERE position > 4",
        "UPDATE entries SET position = -position WHERE position < 0",
    )
    assert (await verified(data_dir)).broken_position == 4


async def test_content_removed_without_a_deleted_entry_is_found(data_dir):
    database = apsw.Connection(str(data_dir / "journal.db"))
    ((secret,),) = database.execute("SELECT secret FROM generations WHERE generation_id = 'a'")
    inner = hmac.digest(secret, b"step 0", "sha256")
    update = "UPDATE entries SET payload = NULL, inner_digest = ? WHERE position = 3"
    database.execute(update, (inner,))
    database.close()
    report = await verified(data_dir)
    assert (report.broken_position, report.num_entries) == (3, NUM_ENTRIES)
    assert "DELETED" in report.detail


async def test_entries_removed_from_the_end_of_an_open_journal_are_found(data_dir):
    journal = await Journal.open(data_dir)
    change(data_dir, "DELETE FROM entries WHERE position = 10")
    report = await journal.verify()
    assert (report.broken_position, report.num_entries) == (10, 9)
    await journal.close()


async def test_verification_runs_beside_appends_and_deletions(tmp_path, monkeypatch):
    monkeypatch.setattr("whence_server.journal.journal._CHAIN_CHUNK", 7)
    journal = await Journal.open(tmp_path)
    for i in range(20):
        whole(journal, f"g{i}")
    await journal.flush()
    verifying = asyncio.ensure_future(journal.verify())
    for i in range(20):
        await journal.delete(f"g{i}")
    assert (await verifying).intact
    report = await journal.verify()
    assert (report.num_entries, report.intact) == (120, True)
    await journal.close()


# ---- deletion ----


def files_with(data_dir, content):
    return [path.name for path in data_dir.rglob("*") if content in path.read_bytes()]


@pytest.mark.parametrize("durability", Durability)
async def test_deleted_content_is_gone_from_disk(tmp_path, durability):
    journal = await Journal.open(tmp_path, durability=durability)
    for i in range(50):
        whole(journal, f"before {i}")
    columns = {"labels": {"who": PROMPT.decode()}, "prompt_preview": PROMPT.decode()}
    create(journal, "g", PROMPT * 1_000, trace_id="7" * 32, request_digest="8" * 64, **columns)
    for i in range(300):
        append_steps(journal, "g", PROMPT)
        whole(journal, f"between {i}", 1)
    finish(journal, "g")
    journal.record_call("g", b"a call of " + PROMPT)
    await journal.flush()
    assert files_with(tmp_path, PROMPT)
    await journal.delete("g")
    for content in (PROMPT, b"7" * 32, b"8" * 64):
        assert files_with(tmp_path, content) == []
    assert (await journal.verify()).intact
    await journal.close()
    assert files_with(tmp_path, PROMPT) == []
    assert (await verified(tmp_path)).intact


async def test_deletion_keeps_id_and_digests_only(data_dir):
    journal = await Journal.open(data_dir)
    await journal.delete("a")
    with pytest.raises(GenerationNotFoundError) as caught:
        await journal.get("a")
    assert caught.value.reason == "GENERATION_DELETED"
    for reading in (journal.read("a"), collect(journal.follow("a")), journal.delete("a")):
        with pytest.raises(GenerationNotFoundError, match="was deleted"):
            await reading
    tombstone = await journal.look_up("a")
    blank = index(
        "a",
        trace_id="",
        model="",
        start_time_ns=0,
        request_digest="",
        labels={},
        prompt_preview="",
        num_prompt_tokens=0,
    )
    assert (tombstone.index, tombstone.finish, tombstone.deleted) == (blank, None, True)
    entries = await journal.read_committed(0)
    assert [e.position for e in entries] == list(range(1, NUM_ENTRIES + 2))
    assert {e.payload for e in entries[:-1] if e.generation_id == "a"} == {b""}
    assert entries[-1].kind is EntryKind.DELETED
    deletion = Deletion.FromString(entries[-1].payload)
    assert (deletion.generation_id, deletion.started_position) == ("a", 2)
    assert deletion.num_entries == 5
    assert (entries[-1].generation_id, entries[-1].offset) == ("a", 0)
    assert len(await journal.read("b")) == 3
    # Its secret is gone: nobody can test a guess at the content.
    database = apsw.Connection(str(data_dir / "journal.db"))
    query = "SELECT secret FROM generations WHERE generation_id = 'a'"
    assert database.execute(query).get is None
    database.close()
    journal.record_call("a", b"the call that deleted it")
    assert (await journal.verify()).intact
    await journal.close()
    report = await verified(data_dir)
    assert (report.num_entries, report.intact) == (NUM_ENTRIES + 2, True)


async def test_follower_of_a_deleted_generation_gets_an_error(tmp_path):
    journal = await Journal.open(tmp_path)
    whole(journal, "g", 100)
    await journal.flush()
    reader = journal.follow("g", max_batch_bytes=1)
    assert len(await take(reader, 10)) == 10
    await journal.delete("g")
    with pytest.raises(GenerationNotFoundError, match="was deleted"):
        await collect(reader)
    await journal.close()


async def test_deleting_twice_at_once_is_recorded_once(tmp_path):
    journal = await Journal.open(tmp_path)
    whole(journal, "g")
    done = await asyncio.gather(journal.delete("g"), journal.delete("g"), return_exceptions=True)
    assert sorted(str(type(result).__name__) for result in done) == [
        "GenerationNotFoundError",
        "NoneType",
    ]
    rows, _ = await journal.list(ListFilter(), 10)
    assert rows == []
    assert (await journal.verify()).num_entries == 6
    await journal.close()


async def test_deleted_content_is_cleared_after_a_foreign_reader_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("whence_server.journal.deletion._CLEAR_AGAIN_S", 0.01)
    journal = await Journal.open(tmp_path)
    whole(journal, "g", payload=PROMPT)
    await journal.flush()
    journal._store._connection.set_busy_timeout(1)
    foreign = apsw.Connection(str(tmp_path / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    foreign.execute("BEGIN")
    foreign.execute("SELECT * FROM entries").fetchall()
    with pytest.raises(DeletionPendingError, match="another process reads") as caught:
        await journal.delete("g")
    assert caught.value.reason == "CONTENT_STILL_IN_LOG"
    foreign.close()
    # Nothing more is asked of it: the server goes on by itself.
    async with asyncio.timeout(30):
        await journal.wait_cleared()
    assert files_with(tmp_path, PROMPT) == []
    await journal.close()
