"""Audit records in the journal: chained, listed by filter and page, and kept when content goes."""

import base64
from pathlib import Path

import apsw
import pytest
from journal_cases import FINISH
from journal_records import change, started

from whence.v1.audit_pb2 import AUDIT_ACTION_DELETE, ListAuditRequest, ListAuditResponse
from whence.v1.generation_pb2 import GenerationFinished
from whence_server.domain.audit import AuditAction, AuditEntry, AuditFilter, Deed
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.tracing import TraceContext
from whence_server.journal import audit_log, sql_reads
from whence_server.journal.derive import derive_started_index
from whence_server.journal.journal import Journal
from whence_server.journal.retention.store import RemovalLimits
from whence_server.journal.rows import Durability
from whence_server.journal.sqlite_store import SqliteStore
from whence_server.journal.verify import verify_journal
from whence_server.rpc.audit_servicer import AuditServicer
from whence_server.rpc.calls import Call

GENERATION = "00000000-0000-4000-8000-000000000001"
FINISHED = GenerationFinished(finish_reason=FINISH.finish_reason.value).SerializeToString()


def make_entry(number: int, caller: str = "alice", **fields: object) -> AuditEntry:
    deed = Deed(AuditAction.READ, number, "m", caller, detail=str(number), **fields)
    return AuditEntry(deed, 1, number)


async def fill(data_dir: Path) -> Journal:
    """Put a deleted generation on record, with audit records before and after its entries."""
    journal = await Journal.open(data_dir)
    payload = started(GENERATION, 1).SerializeToString()
    journal.audit.record(make_entry(1))
    journal.create(derive_started_index(payload), payload)
    journal.audit.record(make_entry(2, "bob", generation_id=GENERATION))
    journal.finish(GENERATION, FINISHED, FINISH)
    await journal.flush()
    await journal.delete(GENERATION, "carol")
    deed = Deed(AuditAction.DELETE, 3, "d", "carol", generation_id=GENERATION, reason="erasure 7")
    journal.audit.record(AuditEntry(deed, 1, 3))
    return journal


async def list_details(journal: Journal, wanted: AuditFilter, limit: int = 10) -> list[list[str]]:
    pages, before = [], None
    while True:
        page = await journal.audit.list(wanted, limit, before)
        pages.append([it.detail or it.reason for it in page.records])
        if page.end is None:
            return pages
        before = page.end


async def test_records_are_listed_newest_first_by_filter_and_page(tmp_path: Path) -> None:
    journal = await fill(tmp_path)
    assert await list_details(journal, AuditFilter()) == [["erasure 7", "2", "1"]]
    assert await list_details(journal, AuditFilter(), 2) == [["erasure 7", "2"], ["1"]]
    assert await list_details(journal, AuditFilter(), 3) == [["erasure 7", "2", "1"]]
    for wanted, found in (
        (AuditFilter(caller_id="bob"), ["2"]),
        (AuditFilter(generation_id=GENERATION), ["erasure 7", "2"]),
        (AuditFilter(actions=frozenset({AuditAction.DELETE})), ["erasure 7"]),
        (AuditFilter(start_after_ns=1), ["erasure 7", "2"]),
        (AuditFilter(start_before_ns=2), ["1"]),
    ):
        assert await list_details(journal, wanted) == [found]
    await journal.close()


async def test_page_examines_a_bounded_number_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_log, "_CHUNK", 5)
    monkeypatch.setattr(audit_log, "_MAX_EXAMINED", 10)
    journal = await Journal.open(tmp_path)
    for number in range(25):
        journal.audit.record(make_entry(number, "rare" if number == 3 else "often"))
    found = await list_details(journal, AuditFilter(caller_id="rare"))
    assert found == [[], [], ["3"]]
    await journal.close()


async def test_records_survive_a_deletion_and_belong_to_no_generation(tmp_path: Path) -> None:
    journal = await fill(tmp_path)
    await journal.flush()
    entries = [it for it in await journal.read_committed(0) if it.kind is EntryKind.AUDIT]
    assert [(bool(it.payload), it.generation_id, it.offset) for it in entries] == [
        (True, "", 0)
    ] * 3
    assert (await journal.verify()).intact
    await journal.close()
    assert verify_journal(tmp_path).findings == []


def make_other_journals_token(token: str) -> str:
    """Return a token with another log's id, behind the eight bytes of the filter."""
    raw = base64.urlsafe_b64decode(token)
    return base64.urlsafe_b64encode(raw[:8] + bytes(16) + raw[24:]).decode()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE kind = 9 AND position = 1",
        "UPDATE entries SET payload = x'0801' WHERE kind = 9 AND position = 1",
        "UPDATE entries SET payload = NULL WHERE kind = 9 AND position = 1",
        # A deletion of that generation would take the record with it.
        "UPDATE entries SET generation = 2 WHERE kind = 9 AND position = 1",
    ],
)
async def test_verify_notices_a_changed_record(tmp_path: Path, statement: str) -> None:
    await (await fill(tmp_path)).close()
    change(tmp_path, statement)
    assert verify_journal(tmp_path).findings != []


async def test_retention_removes_records_at_their_own_age(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    for number in (10, 20, 30):
        journal.audit.record(make_entry(number))
    await journal.close()
    store = SqliteStore(tmp_path / "journal.db", Durability.GROUP)

    def find_last(audit_before_ns: int, before_ns: int = 50) -> int:
        limits = RemovalLimits(before_ns, audit_before_ns, 3, 0, 100)
        found = store.find_removable(limits)
        return 0 if found is None else found.position

    assert [find_last(it) for it in (10, 11, 25, 50)] == [0, 1, 2, 3]
    store.close()


async def test_list_reads_an_index_and_no_steps(tmp_path: Path) -> None:
    """Hold the query to the index over generations, whose end is kind and position."""
    await (await fill(tmp_path)).close()
    connection = apsw.Connection(str(tmp_path / "journal.db"), flags=apsw.SQLITE_OPEN_READONLY)
    query = f"EXPLAIN QUERY PLAN {sql_reads.READ_AUDIT}"
    plan = [row[3] for row in connection.execute(query, (1, 99, 9))]
    connection.close()
    terms = "writer=? AND generation=? AND offset=? AND kind=? AND position<?"
    assert plan == [f"SEARCH entries USING INDEX entries_by_generation ({terms})"]


async def test_service_refuses_tokens_of_other_lists_and_names_the_fault(tmp_path: Path) -> None:
    journal = await fill(tmp_path)
    servicer = AuditServicer(journal.audit)
    call = Call(TraceContext("4b" * 16, "0a" * 8), 0, 0, "ipv4:127.0.0.1:1")

    async def list_page(**fields: object) -> tuple[list[int], str]:
        answer = ListAuditResponse.FromString(
            await servicer.list_audit(ListAuditRequest(**fields), call)
        )
        return [it.action for it in answer.records], answer.next_page_token

    first, token = await list_page(page_size=1)
    assert first == [AUDIT_ACTION_DELETE]
    rest, end = await list_page(page_size=2, page_token=token)
    assert (len(rest), end) == (2, "")
    for field, fields in (
        ("page_token", {"page_token": token, "caller_id": "bob"}),
        ("page_token", {"page_token": "bm90IG9uZQ=="}),
        ("page_token", {"page_token": "é"}),
        ("page_token", {"page_token": make_other_journals_token(token)}),
        ("page_size", {"page_size": -1}),
        ("caller_id", {"caller_id": "x" * 257}),
        ("actions", {"actions": [1] * 33}),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            await list_page(**fields)
        assert [it.field for it in caught.value.violations] == [field]
    await journal.close()
