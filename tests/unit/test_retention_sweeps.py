"""Sweeps over real journals: what is deleted, what stays, what is on record, what the disk has."""

import asyncio
import logging
import time

import apsw
import pytest
from aged_journal import DAY_NS, add, fill, list_kept, name
from store_hooks import StoreHooks

from whence.v1 import deletion_pb2
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import GenerationHeldError, StoredBytesError
from whence_server.domain.retention import DeletionCause, LabelAge, LabelPattern, RetentionPolicy
from whence_server.journal.journal import Journal
from whence_server.journal.listing import PageKey
from whence_server.journal.retention import sql_queries
from whence_server.journal.retention import sweeper as sweeper_module
from whence_server.journal.retention.sweeper import Sweeper
from whence_server.journal.rows import FinishIndex

DAY_S = 86_400
HALF_A_YEAR = RetentionPolicy(age_s=180 * DAY_S, unread_s=7 * DAY_S)
HOLD = LabelPattern("matter", "*")
# The newest generation is of this hour: else the clock would be waited for.
MIXED = (
    (1, 400, {"env": "test", "matter": "2031-17"}),
    (2, 300, {}),
    (3, 181, {"team": "red"}),
    (4, 179, {}),
    (5, 8, {"env": "test"}),
    (6, 6, {"env": "test"}),
    (7, 0, {}),
)


def make_sweeper(journal: Journal, policy: RetentionPolicy, *exports: str) -> Sweeper:
    sweeper = journal.make_sweeper(policy, exports)
    assert sweeper is not None
    return sweeper


async def read_deletions(journal: Journal) -> dict[str, deletion_pb2.Deletion]:
    entries = await journal.read_committed(0, limit=10_000)
    return {
        entry.generation_id: deletion_pb2.Deletion.FromString(entry.payload)
        for entry in entries
        if entry.kind is EntryKind.DELETED
    }


async def test_a_sweep_deletes_what_is_due_and_says_why(tmp_path, verify_store) -> None:
    await fill(tmp_path, *MIXED)
    journal = await Journal.open(tmp_path)
    policy = RetentionPolicy(
        180 * DAY_S, 0, (LabelAge(LabelPattern("env", "test"), 7 * DAY_S),), (HOLD,), 7 * DAY_S
    )
    sweeper = make_sweeper(journal, policy)
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 8)) == [1, 4, 6, 7]
    found = {
        generation_id: (it.cause, it.rule, it.caller_id)
        for generation_id, it in (await read_deletions(journal)).items()
    }
    age = deletion_pb2.DELETION_CAUSE_AGE
    assert found == {
        name(2): (age, "--retain 180d", ""),
        name(3): (age, "--retain 180d", ""),
        name(5): (age, "--retain-label env=test=7d", ""),
    }
    assert sweeper.stats.num_deleted == {"age": 3, "size": 0}
    assert (sweeper.stats.num_held, sweeper.stats.num_unread, sweeper.stats.num_waiting) == (
        1,
        0,
        0,
    )
    before = journal.position
    await sweeper.sweep()
    assert journal.position == before
    await journal.close()
    assert verify_store(tmp_path).findings == []


async def test_the_causes_of_the_domain_are_those_of_the_contract() -> None:
    contract = dict(deletion_pb2.DeletionCause.items())
    assert contract.pop("DELETION_CAUSE_UNSPECIFIED") == 0
    assert contract == {f"DELETION_CAUSE_{it.name}": it.value for it in DeletionCause}


@pytest.mark.usefixtures("each_store")
async def test_nothing_deletes_what_is_held_and_a_start_without_the_hold_lifts_it(tmp_path) -> None:
    await fill(tmp_path, *MIXED)
    journal = await Journal.open(tmp_path)
    make_sweeper(journal, RetentionPolicy(holds=(HOLD,)))
    with pytest.raises(GenerationHeldError, match=r"--hold-label matter=\*") as caught:
        await journal.delete(name(1), "caller")
    assert caught.value.reason == "GENERATION_HELD"
    await journal.delete(name(2), "caller")
    (found,) = (await read_deletions(journal)).values()
    assert (found.cause, found.caller_id) == (deletion_pb2.DELETION_CAUSE_CALLER, "caller")
    await journal.close()
    journal = await Journal.open(tmp_path)
    await journal.delete(name(1))
    await journal.close()


async def test_a_label_that_was_removed_from_the_row_does_not_lift_a_hold(tmp_path) -> None:
    await fill(tmp_path, (1, 1, {"matter": "x"}))
    database = apsw.Connection(str(tmp_path / "journal.db"))
    database.execute("UPDATE generations SET labels = '{}'")
    database.close()
    journal = await Journal.open(tmp_path)
    make_sweeper(journal, RetentionPolicy(holds=(HOLD,)))
    with pytest.raises(GenerationHeldError):
        await journal.delete(name(1))
    await journal.close()


async def test_content_of_swept_generations_is_in_no_file(tmp_path) -> None:
    await fill(tmp_path, (1, 200, {}), (2, 0, {}))
    journal = await Journal.open(tmp_path)
    await make_sweeper(journal, HALF_A_YEAR).sweep()
    held = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert b"prompt 1" not in held
    assert b"1/0 xxx" not in held
    assert b"prompt 2" in held
    await journal.close()


@pytest.mark.usefixtures("each_store")
async def test_running_generations_stay_whatever_their_age(tmp_path) -> None:
    journal = await Journal.open(tmp_path)
    add(journal, 1, 400, ends=False)
    await journal.close()
    journal = await Journal.open(tmp_path)
    add(journal, 2, 0)
    sweeper = make_sweeper(journal, HALF_A_YEAR)
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 3)) == [1, 2]
    await journal.close()


@pytest.mark.usefixtures("each_store")
async def test_what_this_process_recorded_under_a_wrong_date_stays(tmp_path) -> None:
    journal = await Journal.open(tmp_path)
    sweeper = make_sweeper(journal, HALF_A_YEAR)
    add(journal, 1, 20_000)
    add(journal, 2, 0)
    await journal.flush()
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 3)) == [1, 2]
    await journal.close()


async def test_a_server_that_starts_in_a_wrong_year_deletes_nothing(tmp_path, caplog) -> None:
    await fill(tmp_path, (1, 500, {}), (2, 400, {}), (3, 300, {}))
    journal = await Journal.open(tmp_path)
    sweeper = make_sweeper(journal, HALF_A_YEAR)
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 4)) == [2, 3]  # by the newest generation's date
    assert "7200.0 hours ahead" in caplog.text
    await journal.close()


@pytest.mark.usefixtures("each_store")
async def test_an_export_that_is_behind_is_waited_for_then_left_behind(tmp_path, caplog) -> None:
    caplog.set_level(logging.INFO)
    await fill(tmp_path, (1, 188, {}), (2, 181, {}), (3, 0, {}))
    journal = await Journal.open(tmp_path)
    sweeper = make_sweeper(journal, HALF_A_YEAR, "otlp-spans", "otlp-events")
    journal.advance("otlp-events", journal.committed_position)
    await journal.flush()
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 4)) == [2, 3]
    assert (sweeper.stats.num_unread, sweeper.stats.num_waiting) == (1, 1)
    assert "deleted 1 generations that an export had not read" in caplog.text
    journal.advance("otlp-spans", journal.committed_position)
    await journal.flush()
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 4)) == [3]
    assert (sweeper.stats.num_unread, sweeper.stats.num_waiting) == (1, 0)
    await journal.close()


async def test_by_size_the_oldest_go_until_the_rest_fits(tmp_path, verify_store) -> None:
    generations = [(i, 50 - i, {"matter": "x"} if i == 2 else {}) for i in range(1, 41)]
    await fill(tmp_path, *generations, num_steps=100, step_bytes=700)
    journal = await Journal.open(tmp_path)
    add(journal, 99, 0)
    await journal.flush()
    limit = 2_500_000
    sweeper = make_sweeper(journal, RetentionPolicy(max_bytes=limit, holds=(HOLD,)))
    await sweeper.sweep()
    kept = await list_kept(journal, range(1, 100))
    assert sweeper.stats.used_bytes <= limit
    assert kept == [2, *range(kept[1], 41), 99]
    # A generation has about 90 kB: no more than needed went.
    assert limit - sweeper.stats.used_bytes < 200_000
    assert sweeper.stats.num_deleted == {"age": 0, "size": 41 - len(kept)}
    await journal.close()
    assert verify_store(tmp_path).findings == []


async def test_a_journal_that_cannot_be_made_smaller_is_reported_once(tmp_path, caplog) -> None:
    await fill(tmp_path, (1, 5, {"matter": "x"}), num_steps=2_000, step_bytes=700)
    journal = await Journal.open(tmp_path)
    sweeper = make_sweeper(journal, RetentionPolicy(max_bytes=1_000_000, holds=(HOLD,)))
    await sweeper.sweep()
    await sweeper.sweep()
    assert caplog.text.count("more than --retain-bytes 1MB, and nothing more can be deleted") == 1
    assert await list_kept(journal, range(1, 2)) == [1]
    await journal.close()


async def test_batches_are_bounded_and_pauses_lie_between_them(tmp_path, monkeypatch) -> None:
    await fill(tmp_path, *((i, 200, {}) for i in range(1, 101)), (101, 0, {}))
    pauses, sizes = [], []
    sleep = asyncio.sleep

    async def note(delay: float) -> None:
        pauses.append(delay)
        await sleep(0)

    hooks = StoreHooks()
    journal = await Journal.open(tmp_path, open_store=hooks.open_store)
    sweeper = make_sweeper(journal, HALF_A_YEAR)
    delete_all = journal._deletion.delete_all

    async def count(requests):
        sizes.append(len(requests))
        return await delete_all(requests)

    monkeypatch.setattr(journal._deletion, "delete_all", count)
    monkeypatch.setattr(sweeper_module.asyncio, "sleep", note)
    await sweeper.sweep()
    monkeypatch.undo()
    assert sizes == [32, 32, 32, 4]
    assert len(pauses) == len(sizes) + 1  # the last one after the removal of the remains
    assert all(pause > 0 for pause in pauses)
    await journal.close()


async def test_the_task_goes_on_after_a_failed_sweep(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(sweeper_module, "INTERVAL_S", 0.001)
    await fill(tmp_path, (1, 200, {}), (2, 0, {}))
    journal = await Journal.open(tmp_path)
    sweeper = make_sweeper(journal, HALF_A_YEAR)
    failures = [RuntimeError("a bug"), OSError("a disk")]
    measure = journal._store.measure_use

    def fail() -> int:
        if failures:
            raise failures.pop()
        return measure()

    monkeypatch.setattr(journal._store, "measure_use", fail)
    async with sweeper.running(), asyncio.timeout(30):
        await journal.wait_committed(journal.committed_position)
    assert await list_kept(journal, range(1, 3)) == [2]
    assert caplog.text.count("retention failed") == 2
    await journal.close()


async def test_the_oldest_are_found_by_an_index(tmp_path) -> None:
    await fill(tmp_path, (1, 200, {"env": "test"}), (2, 0, {}))
    journal = await Journal.open(tmp_path)
    plans = []
    connection = apsw.Connection(str(tmp_path / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    connection.exec_trace = lambda _cursor, sql, bindings: plans.append((sql, bindings)) or True
    now = time.time_ns()
    for pattern in (None, LabelPattern("env", "test"), LabelPattern("env", "*")):
        beyond = PageKey(now - 300 * DAY_NS, b"")
        sql_queries.read_candidates(connection, 1, pattern, now, beyond, 10)
    connection.exec_trace = None
    for sql, bindings in plans:
        steps = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
        assert not [step for step in steps if step.startswith("SCAN")], steps
    connection.close()
    await journal.close()


@pytest.mark.parametrize(
    "statement",
    [
        f"UPDATE generations SET start_time_ns = 5 WHERE generation_id = '{name(2)}'",
        f"UPDATE generations SET labels = '{{}}' WHERE generation_id = '{name(1)}'",
        f"UPDATE generations SET labels = '[' WHERE generation_id = '{name(1)}'",
    ],
    ids=["date", "label", "no JSON"],
)
async def test_a_column_that_was_changed_deletes_nothing(tmp_path, caplog, statement) -> None:
    await fill(tmp_path, (1, 200, {"matter": "x"}), (2, 0, {}), (3, 0, {}))
    database = apsw.Connection(str(tmp_path / "journal.db"))
    database.execute(statement)
    database.close()
    journal = await Journal.open(tmp_path)
    policy = RetentionPolicy(180 * DAY_S, holds=(HOLD,))
    sweeper = make_sweeper(journal, policy)
    await sweeper.sweep()
    await sweeper.sweep()
    assert await list_kept(journal, range(1, 4)) == [1, 2, 3]
    assert caplog.text.count("its columns are not those of its entries") <= 1
    await journal.close()


@pytest.mark.usefixtures("each_store")
async def test_what_was_deleted_no_longer_counts_for_its_owner(tmp_path) -> None:
    journal = await Journal.open(tmp_path)
    add(journal, 1, 200, num_steps=100, owner="alice")
    add(journal, 2, 0)
    await journal.close()
    journal = await Journal.open(tmp_path)
    with pytest.raises(StoredBytesError):
        await journal.stored.check("alice", 1_000)
    await make_sweeper(journal, HALF_A_YEAR).sweep()
    await journal.stored.check("alice", 1_000)
    await journal.close()


@pytest.mark.usefixtures("each_store")
async def test_a_generation_that_ends_during_a_sweep_waits_for_the_next_one(tmp_path) -> None:
    journal = await Journal.open(tmp_path)
    for number, age_days in ((1, 400), (2, 399), (3, 398)):
        add(journal, number, age_days, ends=number != 2)
    await journal.flush()
    walk = make_sweeper(journal, HALF_A_YEAR)._walk(None, time.time_ns())
    seen = [(await anext(walk)).generation_id]
    journal.finish(name(2), b"", FinishIndex(FinishReason.LENGTH, 3, ""))
    await journal.flush()
    seen += [candidate.generation_id async for candidate in walk]
    assert seen == [name(1), name(3)]
    await journal.close()
