"""Audit records of several logs in one order, with every record once."""

from random import Random

import pytest

from whence_server.domain.audit import AuditAction, AuditEntry, Deed
from whence_server.domain.entries import Entry, EntryKind
from whence_server.journal.audit_codec import encode_audit
from whence_server.journal.audit_merge import AuditMerge


class Records:
    """The part of a store that is asked: audit records of logs, oldest first."""

    def __init__(self, logs: dict[int, list[bytes]]) -> None:
        self.logs = logs

    def read_audit(self, writer: int, before_position: int, limit: int) -> list[Entry]:
        kept = list(enumerate(self.logs[writer], start=1))[: before_position - 1]
        return [Entry(at, "", 0, EntryKind.AUDIT, raw) for at, raw in kept[::-1][:limit]]


def make_record(detail: str, time_ns: int, last_time_ns: int = 0) -> bytes:
    deed = Deed(AuditAction.READ, time_ns, "m", "alice", detail=detail)
    entry = AuditEntry(deed, 2 if last_time_ns else 1, last_time_ns or time_ns)
    return encode_audit(entry)


def list_details(records: Records, places: dict[int, int], num: int, ahead: int = 4) -> list[str]:
    merge = AuditMerge(records, places, ahead)  # type: ignore[arg-type]  # the part that is asked
    found = [record.detail for _, record in zip(range(num), merge, strict=False)]
    places.clear()
    places.update(merge.find_ends())
    return found


def test_the_later_record_comes_first_whichever_log_has_it() -> None:
    records = Records(
        {
            1: [make_record("a1", 10), make_record("a2", 30), make_record("a3", 40, 90)],
            2: [],
            7: [make_record("b1", 20), make_record("b2", 50)],
        }
    )
    places = {1: 4, 2: 1, 7: 3}
    assert list_details(records, places, 10) == ["a3", "b2", "a2", "b1", "a1"]
    assert places == {}


@pytest.mark.parametrize("seed", range(20))
def test_pages_have_every_record_once_while_more_are_written(seed: int) -> None:
    choose = Random(seed)
    logs = {
        writer: [
            # A clock that jumps, and records that cannot be read.
            b"\xff"
            if choose.random() < 0.1
            else make_record(f"{writer}/{at}", choose.randrange(1, 500))
            for at in range(choose.randrange(40))
        ]
        for writer in (1, 2, 3)
    }
    expected = sorted(
        f"{writer}/{at}"
        for writer, raws in logs.items()
        for at, raw in enumerate(raws)
        if raw != b"\xff"
    )
    records = Records(logs)
    places = {writer: len(raws) + 1 for writer, raws in logs.items()}
    found = []
    while places:
        found += list_details(records, places, choose.randrange(1, 9), choose.randrange(1, 9))
        logs[choose.randrange(1, 4)].append(make_record("later", 600))
    assert sorted(found) == expected
    for writer in logs:
        own = [int(it.split("/")[1]) for it in found if it.startswith(f"{writer}/")]
        assert own == sorted(own, reverse=True)
