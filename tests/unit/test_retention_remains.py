"""Remains of deleted generations: removed oldest first, bound into the chain, verified after."""

import time

import apsw
import pytest
from aged_journal import add, fill, list_kept, name

from whence.v1 import audit_pb2, call_pb2, deletion_pb2
from whence_server.domain.errors import GenerationExistsError
from whence_server.domain.retention import RetentionPolicy
from whence_server.journal.journal import Journal
from whence_server.journal.rebuild import rebuild_journal
from whence_server.journal.retention import sweeper as sweeper_module
from whence_server.journal.verify import verify_journal

DAY_S = 86_400
POLICY = RetentionPolicy(age_s=180 * DAY_S, unread_s=7 * DAY_S)
OLD = tuple((i, 400 - i, {}) for i in range(1, 11))
NEW = ((11, 100, {}), (12, 0, {}))
BY_HAND = """
    UPDATE origins SET (position, hash) =
        (SELECT position, hash FROM entries WHERE position = 66);
    DELETE FROM entries WHERE position <= 66
"""


@pytest.fixture(autouse=True)
def _remove_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeper_module, "_LEAST_REMOVED", 1)


async def sweep(directory, policy=POLICY, *exports: str) -> None:
    journal = await Journal.open(directory)
    sweeper = journal.make_sweeper(policy, exports)
    assert sweeper is not None
    await sweeper.sweep()
    await journal.close()


def query(directory, sql: str):
    connection = apsw.Connection(str(directory / "journal.db"))
    found = connection.execute(sql).fetchall()
    connection.close()
    return found


async def test_remains_before_the_oldest_kept_generation_are_removed(
    tmp_path, verify_store
) -> None:
    await fill(tmp_path, *OLD, *NEW)
    await sweep(tmp_path)
    report = verify_store(tmp_path)
    assert (report.findings, report.chain_intact) == ([], True)
    assert any("entries 1 to 60 were removed" in note for note in report.notes)
    assert report.num_generations == 12  # ids stay taken as long as the deletions are on record


async def test_the_journal_goes_on_after_its_beginning_was_removed(tmp_path, verify_store) -> None:
    await fill(tmp_path, *OLD, *NEW)
    await sweep(tmp_path)
    journal = await Journal.open(tmp_path)
    assert (await journal.verify()).intact
    with pytest.raises(GenerationExistsError, match="has been deleted"):
        add(journal, 1, 0)
    add(journal, 13, 0)
    await journal.flush()
    assert await list_kept(journal, range(1, 14)) == [11, 12, 13]
    assert (await journal.read_committed(0))[0].position == 61
    await journal.delete(name(11))
    await journal.close()
    assert verify_store(tmp_path).findings == []


async def test_a_second_removal_follows_the_first(tmp_path, verify_store) -> None:
    await fill(tmp_path, *OLD, *NEW)
    await sweep(tmp_path)
    await sweep(tmp_path, RetentionPolicy(age_s=90 * DAY_S))
    report = verify_store(tmp_path)
    assert report.findings == []
    assert any("entries 1 to 66 were removed" in note for note in report.notes)


async def test_a_record_of_a_deletion_goes_with_the_id_once_it_is_old_itself(
    tmp_path, monkeypatch, verify_store
) -> None:
    await fill(tmp_path, *OLD, (11, 0, {}))
    with monkeypatch.context() as patch:
        # The deletions happen half a year ago.
        patch.setattr("whence_server.journal.deletion.time", _Clock(-200))
        await sweep(tmp_path)
    journal = await Journal.open(tmp_path)
    await journal.delete(name(11))
    add(journal, 12, 0)
    await journal.close()
    await sweep(tmp_path)
    report = verify_store(tmp_path)
    assert report.findings == []
    assert report.num_generations == 2
    journal = await Journal.open(tmp_path)
    add(journal, 1, 0)  # its id is free again
    with pytest.raises(GenerationExistsError):
        add(journal, 11, 0)
    await journal.close()
    assert verify_store(tmp_path).findings == []


class _Clock:
    """The module `time` with a clock that is wrong by some days."""

    def __init__(self, days: float) -> None:
        self._days = days

    def time_ns(self) -> int:
        return time.time_ns() + int(self._days * DAY_S * 10**9)


async def test_records_of_calls_stay_for_the_longest_age(tmp_path) -> None:
    await fill(tmp_path, (1, 179, {}), (2, 0, {}))
    journal = await Journal.open(tmp_path)
    await journal.delete(name(1))
    await journal.close()
    await sweep(tmp_path)
    # The generation's own entries went, and so did the record of its call, which was destroyed
    # with it; nothing later did.
    assert query(tmp_path, "SELECT min(position) FROM entries") == [(7,)]
    assert query(tmp_path, "SELECT count(*) FROM entries WHERE kind = 6") == [(1,)]


async def test_without_rules_of_retention_nothing_is_removed(tmp_path) -> None:
    await fill(tmp_path, *OLD, *NEW)
    journal = await Journal.open(tmp_path)
    await journal.delete(name(1))
    await journal.close()
    await sweep(tmp_path, RetentionPolicy())
    assert query(tmp_path, "SELECT min(position) FROM entries") == [(1,)]


@pytest.mark.parametrize("position", [0, 5, 60])
async def test_cursors_before_the_beginning_are_moved_to_it_and_verify(
    tmp_path, position, verify_store
) -> None:
    await fill(tmp_path, *OLD, *NEW)
    journal = await Journal.open(tmp_path)
    journal.advance("gone", position)
    journal.advance("otlp-spans", journal.committed_position)
    await journal.close()
    await sweep(tmp_path, POLICY, "otlp-spans")
    assert verify_store(tmp_path).findings == []
    journal = await Journal.open(tmp_path)
    assert await journal.read_cursor("gone") == 60
    journal.advance("gone", 61)
    await journal.close()
    assert verify_store(tmp_path).findings == []


@pytest.mark.parametrize(
    ("age_days", "read_position", "first"),
    [(185, 6, 7), (185, 7, 8), (188, 6, 8), (179, 7, 7)],
    ids=["behind", "read", "behind for too long", "young"],
)
async def test_a_record_of_a_call_waits_for_an_export(
    tmp_path, age_days: float, read_position: int, first: int
) -> None:
    journal = await Journal.open(tmp_path)
    add(journal, 1, 400)
    call = call_pb2.Call(method="whence.v1.ModelService/GetModel")
    call.end_time.FromNanoseconds(time.time_ns() - int(age_days * DAY_S * 10**9))
    journal.record_call("", call.SerializeToString())
    add(journal, 2, 0)
    await journal.flush()
    journal.advance("otlp-spans", read_position)
    await journal.close()
    await sweep(tmp_path, POLICY, "otlp-spans")
    assert query(tmp_path, "SELECT min(position) FROM entries") == [(first,)]
    assert verify_journal(tmp_path).findings == []


@pytest.mark.parametrize(
    ("last_age_days", "policy", "first"),
    [
        (179, POLICY, 7),
        (181, POLICY, 8),
        (179, RetentionPolicy(age_s=180 * DAY_S, max_bytes=1), 7),
        (29, RetentionPolicy(age_s=20 * DAY_S, max_bytes=1), 8),
        (29, RetentionPolicy(max_bytes=1), 7),
        (31, RetentionPolicy(max_bytes=1), 8),
    ],
    ids=[
        *("young", "old", "young and too large", "old and too large"),
        *("young and too large without an age", "old and too large without an age"),
    ],
)
async def test_a_record_of_the_audit_stays_for_the_longest_age_however_large_the_journal_is(
    tmp_path, last_age_days: float, policy: RetentionPolicy, first: int
) -> None:
    journal = await Journal.open(tmp_path)
    add(journal, 1, 400)
    record = audit_pb2.AuditRecord(action=audit_pb2.AUDIT_ACTION_READ)
    record.time.FromNanoseconds(time.time_ns() - 500 * DAY_S * 10**9)
    record.last_time.FromNanoseconds(time.time_ns() - int(last_age_days * DAY_S * 10**9))
    journal._log.record_audit(record.SerializeToString())
    add(journal, 2, 0, ends=False)
    await journal.flush()
    await journal.close()
    journal = await Journal.open(tmp_path)
    sweeper = journal.make_sweeper(policy)
    assert sweeper is not None
    await sweeper.sweep()
    await journal.close()
    assert query(tmp_path, "SELECT min(position) FROM entries") == [(first,)]
    assert verify_journal(tmp_path).findings == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE origins SET position = position + 1",
        "UPDATE origins SET hash = zeroblob(32)",
        "DELETE FROM origins",
        "DELETE FROM entries WHERE position = (SELECT min(position) FROM entries)",
        # The same removal by hand: the newest record of a removal names another place.
        BY_HAND,
    ],
)
async def test_a_beginning_that_was_changed_by_hand_is_found(tmp_path, statement) -> None:
    await fill(tmp_path, *OLD, *NEW)
    await sweep(tmp_path)
    query(tmp_path, statement)
    assert not verify_journal(tmp_path).intact


async def test_a_rebuild_changes_nothing_after_a_removal(tmp_path) -> None:
    await fill(tmp_path, *OLD, *NEW)
    await sweep(tmp_path)
    assert rebuild_journal(tmp_path) == 0


async def test_a_removal_is_on_record_with_place_and_hash(tmp_path) -> None:
    await fill(tmp_path, *OLD, *NEW)
    ((wanted,),) = query(tmp_path, "SELECT hash FROM entries WHERE position = 60")
    await sweep(tmp_path)
    payloads = query(tmp_path, "SELECT payload FROM entries WHERE kind = 7 ORDER BY position")
    last = deletion_pb2.Deletion.FromString(payloads[-1][0])
    assert last.cause == deletion_pb2.DELETION_CAUSE_REMOVAL
    assert (last.removed_position, last.removed_hash) == (60, wanted)
    assert last.generation_id == ""
    assert query(tmp_path, "SELECT position, hash FROM origins") == [(60, wanted)]


async def test_few_remains_are_removed_once_a_day(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sweeper_module, "_LEAST_REMOVED", 1_000)
    await fill(tmp_path, *OLD, *NEW)
    journal = await Journal.open(tmp_path)
    sweeper = journal.make_sweeper(POLICY)
    assert sweeper is not None
    now_ns = time.monotonic_ns()
    sweeper._monotonic = lambda: now_ns
    await sweeper.sweep()
    assert query(tmp_path, "SELECT min(position) FROM entries") == [(61,)]
    await journal.delete(name(11))
    for hours, first in ((1, 61), (25, 67)):
        now_ns = time.monotonic_ns() + hours * 3_600 * 10**9
        await sweeper.sweep()
        assert query(tmp_path, "SELECT min(position) FROM entries") == [(first,)]
    await journal.close()
    assert verify_journal(tmp_path).findings == []
