"""Occurrences in the journal: outside the offsets, chained under their generation's key."""

import asyncio
import hashlib
import hmac

import apsw
import pytest
from journal_cases import append_steps, collect, create, finish
from journal_records import FIRST, RUNNING, begin, change, end

from whence.v1.deletion_pb2 import Deletion
from whence.v1.step_pb2 import Step
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import GenerationNotFoundError
from whence_server.journal.chain import hash_genesis
from whence_server.journal.journal import Journal
from whence_server.journal.rows import Durability
from whence_server.journal.schema import migrate
from whence_server.journal.sql_rows import make_entries_query
from whence_server.journal.verify import verify_journal

OCCURRENCE = EntryKind.OCCURRENCE


@pytest.fixture
async def data_dir(tmp_path):
    await fill(tmp_path)
    return tmp_path


async def fill(directory):
    """Fill a journal: two occurrences of a finished generation, and a running generation."""
    journal = await Journal.open(directory)
    begin(journal, FIRST, 1)
    journal.record_occurrence(FIRST, b"first")
    append_steps(journal, FIRST, Step(index=3).SerializeToString())
    journal.record_occurrence(FIRST, b"second")
    end(journal, FIRST, 1)
    begin(journal, RUNNING, 2)
    await journal.close()


async def test_occurrences_are_outside_the_offsets_and_keep_their_bytes(tmp_path, each_store):
    await fill(tmp_path)
    journal = await Journal.open(tmp_path)
    entries = await journal.read_committed(0)
    step = EntryKind.STEP
    assert [(e.offset, e.kind) for e in entries if e.generation_id == FIRST] == [
        *((1, EntryKind.STARTED), (2, step), (3, step), (4, step), (0, OCCURRENCE), (5, step)),
        *((0, OCCURRENCE), (6, EntryKind.FINISHED), (0, EntryKind.CALL)),
    ]
    assert [e.payload for e in entries if e.kind is OCCURRENCE] == [b"first", b"second"]
    assert [e.offset for e in await collect(journal.follow(FIRST))] == [1, 2, 3, 4, 5, 6]
    assert [e.offset for e in await journal.read(FIRST)] == [1, 2, 3, 4, 5, 6]
    for after in (0, 2, 2**64 - 1):
        found = await journal.read(FIRST, after, kinds={OCCURRENCE})
        assert [e.payload for e in found] == [b"first", b"second"]
    found = await journal.read(FIRST, kinds={OCCURRENCE}, limit=1)
    assert [e.payload for e in found] == [b"first"]
    found = await journal.read(FIRST, kinds={EntryKind.STARTED, EntryKind.FINISHED, OCCURRENCE})
    assert [e.offset for e in found] == [0, 0, 1, 6]
    await journal.close()


def test_a_query_for_occurrences_walks_over_no_steps():
    database = apsw.Connection(":memory:")
    migrate(database)
    query = f"EXPLAIN QUERY PLAN {make_entries_query({OCCURRENCE})}"
    plan = " ".join(row[3] for row in database.execute(query, (1, 1, 0, 1)))
    assert "entries_by_generation (writer=? AND generation=? AND offset>? AND offset<?)" in plan
    database.close()


async def test_only_a_running_generation_has_occurrences(data_dir):
    journal = await Journal.open(data_dir)
    for generation_id in (FIRST, "unknown"):
        with pytest.raises(GenerationNotFoundError):
            journal.record_occurrence(generation_id, b"late")
    with pytest.raises(ValueError, match="OCCURRENCE"):
        journal.append(RUNNING, OCCURRENCE, b"with an offset")
    await journal.close()


@pytest.mark.parametrize("durability", Durability)
async def test_a_reader_gets_the_steps_before_an_occurrence_of_the_same_commit(
    tmp_path, durability
):
    journal = await Journal.open(tmp_path, durability=durability)
    create(journal, "g")
    reader = journal.follow("g")
    assert [e.offset for e in await anext(reader)] == [1]
    append_steps(journal, "g", b"0")
    journal.record_occurrence("g", b"after it")
    assert [e.offset for e in await asyncio.wait_for(anext(reader), 60)] == [2]
    finish(journal, "g")
    assert [e.offset for e in await asyncio.wait_for(anext(reader), 60)] == [3]
    await reader.aclose()
    await journal.close()


async def test_the_key_of_an_occurrence_is_its_generations_secret(data_dir):
    database = apsw.Connection(str(data_dir / "journal.db"))
    ((writer_id,),) = database.execute("SELECT writer_id FROM writers")
    secrets = dict(database.execute("SELECT started_position, secret FROM generations"))
    rows = database.execute("SELECT kind, generation, payload, hash FROM entries ORDER BY position")
    last = hash_genesis(writer_id)
    for kind, generation, payload, stored in rows.fetchall():
        key = b"" if kind == EntryKind.CALL else secrets[generation]
        inner = hmac.new(key, payload, hashlib.sha256).digest()
        last = hashlib.sha256(last + bytes([kind]) + inner).digest()
        assert last == stored
    database.close()
    assert verify_journal(data_dir).findings == []


@pytest.mark.parametrize(
    ("statement", "detail"),
    [
        ("UPDATE entries SET payload = x'00' WHERE position = 7", "hash"),
        ("UPDATE entries SET generation = 10 WHERE position = 7", "hash"),
        ("UPDATE entries SET generation = 0 WHERE position = 7", "hash"),
        ('UPDATE entries SET "offset" = 6 WHERE position = 7', "should have none"),
        ("UPDATE entries SET kind = 6 WHERE position = 7", "hash"),
        ("DELETE FROM entries WHERE position = 7", "missing"),
    ],
)
async def test_verify_finds_a_changed_occurrence(data_dir, statement, detail):
    change(data_dir, statement)
    report = verify_journal(data_dir)
    assert not report.chain_intact
    found = {finding.row: finding.detail for finding in report.findings}
    assert detail in found["broken at entry 7"]


async def test_deleting_a_generation_destroys_its_occurrences(data_dir):
    journal = await Journal.open(data_dir)
    await journal.delete(FIRST)
    entries = await journal.read_committed(0)
    assert [e.payload for e in entries if e.kind is OCCURRENCE] == [b"", b""]
    deletion = Deletion.FromString(entries[-1].payload)
    assert (deletion.generation_id, deletion.num_entries) == (FIRST, 9)
    await journal.close()
    stored = b"".join(path.read_bytes() for path in data_dir.glob("journal.db*"))
    assert b"second" not in stored
    assert verify_journal(data_dir).findings == []


async def test_verify_finds_a_changed_digest_of_a_deleted_occurrence(data_dir):
    journal = await Journal.open(data_dir)
    await journal.delete(FIRST)
    await journal.close()
    change(data_dir, "UPDATE entries SET inner_digest = zeroblob(32) WHERE position = 7")
    assert not verify_journal(data_dir).chain_intact
