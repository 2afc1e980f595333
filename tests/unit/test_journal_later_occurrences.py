"""Occurrences of generations that have ended: chained, read, and destroyed with them."""

import asyncio

import pytest
from journal_records import DELETED, FIRST, RUNNING, begin, end
from sealed_journals import make_options, open_keys

from whence.v1.deletion_pb2 import Deletion
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import GenerationNotFoundError
from whence_server.journal.journal import Journal
from whence_server.journal.verify import verify_journal

OCCURRENCE = EntryKind.OCCURRENCE


async def read_occurrences(journal, generation_id):
    entries = await journal.read(generation_id, kinds={OCCURRENCE})
    return [(entry.offset, entry.payload) for entry in entries]


async def test_an_ended_generation_gets_an_occurrence_also_after_a_restart(tmp_path, each_store):
    journal = await Journal.open(tmp_path)
    begin(journal, FIRST, 1)
    end(journal, FIRST, 1)
    # Its end is not on disk yet.
    await journal.later.record(FIRST, "", b"at once")
    await journal.close()
    journal = await Journal.open(tmp_path)
    begin(journal, RUNNING, 2)
    await journal.later.record(RUNNING, "", b"while it runs")
    await journal.later.record(FIRST, "", b"long after")
    assert await read_occurrences(journal, FIRST) == [(0, b"at once"), (0, b"long after")]
    assert await read_occurrences(journal, RUNNING) == [(0, b"while it runs")]
    assert [entry.offset for entry in await journal.read(FIRST)] == [1, 2, 3, 4, 5]
    assert (await journal.verify()).intact
    await journal.close()


async def test_a_later_occurrence_counts_for_its_owner_and_verify_finds_nothing_wrong(tmp_path):
    journal = await Journal.open(tmp_path)
    begin(journal, FIRST, 1, owner="alice")
    end(journal, FIRST, 1)
    await journal.flush()
    counted: list[tuple[str, int]] = []
    journal._log.on_append = lambda *given: counted.append(given)
    await journal.later.record(FIRST, "alice", b"an explanation")
    assert counted == [("alice", len(b"an explanation"))]
    await journal.close()
    assert verify_journal(tmp_path).findings == []


async def test_a_sealed_generation_has_its_later_occurrence_sealed(tmp_path):
    options = make_options(tmp_path / "keys")
    journal = await Journal.open(tmp_path / "data", sealing=options)
    begin(journal, FIRST, 1)
    end(journal, FIRST, 1)
    await journal.close()
    journal = await Journal.open(tmp_path / "data", sealing=options)
    await journal.later.record(FIRST, "", b"what it says")
    assert await read_occurrences(journal, FIRST) == [(0, b"what it says")]
    await journal.close()
    stored = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("journal.db*"))
    assert b"what it says" not in stored
    keys = open_keys(tmp_path / "data", tmp_path / "keys")
    assert verify_journal(tmp_path / "data", keys).findings == []


async def test_a_deletion_destroys_later_occurrences_and_no_further_one_is_taken(tmp_path):
    journal = await Journal.open(tmp_path)
    begin(journal, DELETED, 1)
    end(journal, DELETED, 1)
    await journal.later.record(DELETED, "", b"what it says")
    await journal.delete(DELETED)
    entries = await journal.read_committed(0)
    assert Deletion.FromString(entries[-1].payload).num_entries == 7
    for generation_id in (DELETED, "unknown"):
        with pytest.raises(GenerationNotFoundError):
            await journal.later.record(generation_id, "", b"too late")
    await journal.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("journal.db*"))
    assert b"what it says" not in stored
    assert verify_journal(tmp_path).findings == []


async def test_an_occurrence_never_outlives_a_deletion_that_begins_meanwhile(tmp_path):
    journal = await Journal.open(tmp_path)
    begin(journal, DELETED, 1)
    end(journal, DELETED, 1)
    await journal.flush()
    recording = [
        asyncio.create_task(journal.later.record(DELETED, "", b"what it says %d" % i))
        for i in range(20)
    ]
    await asyncio.sleep(0)
    await journal.delete(DELETED)
    results = await asyncio.gather(*recording, return_exceptions=True)
    assert all(result is None or isinstance(result, GenerationNotFoundError) for result in results)
    await journal.close()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("journal.db*"))
    assert b"what it says" not in stored
    assert verify_journal(tmp_path).findings == []
