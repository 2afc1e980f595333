"""The trail of what callers do: bounded, and without gaps in its numbers."""

from dataclasses import replace

import pytest

from whence_server.access.audit import (
    MAX_DIFFERENT,
    MAX_REASON_CHARACTERS,
    AuditTrail,
    parse_reason,
)
from whence_server.access.deeds import make_deed
from whence_server.access.scope_table import TABLE
from whence_server.domain.audit import AuditAction, AuditEntry, AuditLevel, Deed
from whence_server.domain.errors import JournalError
from whence_server.domain.identity import ANYONE, Identity, Scope
from whence_server.domain.occurrences import Caller
from whence_server.domain.tracing import TraceContext

MINUTE_NS = 60_000_000_000
GET = "whence.v1.TraceService/GetGeneration"
READ = Deed(AuditAction.READ_CONTENT, 5, GET, "alice", "192.0.2.7", "one")


class Written:
    """A trail with its entries, and a clock that stands."""

    def __init__(self, level: AuditLevel = AuditLevel.ALL) -> None:
        self.now_ns = 0
        self.entries: list[AuditEntry] = []
        self.trail = AuditTrail(level, self.entries.append, lambda: self.now_ns)

    def read(self, number: int, caller: str = "alice") -> None:
        self.trail.note(replace(READ, caller_id=caller, generation_id=f"it-{number}"))


def test_first_call_is_on_record_at_once_and_a_minutes_others_as_one_number() -> None:
    written = Written()
    for number in range(1_000):
        written.trail.note(replace(READ, time_ns=number, span_id=str(number)))
    assert [(it.num_calls, it.deed.time_ns) for it in written.entries] == [(1, 0)]
    written.now_ns = MINUTE_NS
    written.trail.write_due()
    assert [it.num_calls for it in written.entries] == [1, 999]
    others = written.entries[1]
    assert (others.deed.time_ns, others.last_time_ns, others.is_summary) == (1, 999, False)
    written.now_ns = 2 * MINUTE_NS
    written.trail.write_due()
    written.trail.write_due(at_end=True)
    assert len(written.entries) == 2, "nothing is written twice"


@pytest.mark.parametrize(
    "other",
    [
        {"action": AuditAction.READ},
        {"method": "whence.v1.TraceService/ListSteps"},
        {"caller_id": "bob"},
        {"generation_id": "two"},
        {"reason": "audit 7"},
        {"status_code": 5},
    ],
)
def test_calls_that_differ_have_records_of_their_own(other: dict[str, object]) -> None:
    written = Written()
    for deed in (READ, replace(READ, **other), READ):
        written.trail.note(deed)
    assert len(written.entries) == 2


def test_a_reader_of_everything_is_bounded_and_every_call_is_counted() -> None:
    written = Written()
    for number in range(10_000):
        written.read(number)
    written.read(1, caller="bob")
    written.trail.write_due(at_end=True)
    of_alice = [it for it in written.entries if it.deed.caller_id == "alice"]
    assert len(of_alice) == MAX_DIFFERENT + 2
    assert sum(it.num_calls for it in of_alice) == 10_000
    summaries = [it for it in of_alice if it.is_summary]
    assert {it.deed.generation_id for it in summaries} == {""}
    assert [it.deed.generation_id for it in written.entries if it.deed.caller_id == "bob"] == [
        "it-1"
    ], "another caller has a bound of its own"


def test_every_generation_and_deletion_is_on_record_and_failures_are_bounded() -> None:
    written = Written()
    for action in (AuditAction.GENERATE, AuditAction.DELETE):
        for number in range(5 * MAX_DIFFERENT):
            written.trail.note(replace(READ, action=action, generation_id=f"it-{number}"))
    assert len(written.entries) == 10 * MAX_DIFFERENT
    for number in range(5 * MAX_DIFFERENT):
        failed = replace(READ, action=AuditAction.DELETE, status_code=5, generation_id=f"{number}")
        written.trail.note(failed)
    assert len(written.entries) == 11 * MAX_DIFFERENT + 1


def test_reasons_make_no_more_records_of_one_generation() -> None:
    written = Written()
    joined = replace(READ, action=AuditAction.GENERATE)
    for number in range(1_000):
        written.trail.note(replace(joined, reason=f"reason {number}"))
    assert [(it.num_calls, it.deed.reason) for it in written.entries] == [(1, "reason 0")]
    assert len(written.trail._counted) == 1
    written.trail.write_due(at_end=True)
    assert [(it.num_calls, it.deed.reason) for it in written.entries[1:]] == [(999, "")]
    for _ in range(3):
        written.trail.note(replace(joined, reason="one for all"))
    written.trail.write_due(at_end=True)
    assert written.entries[-1].num_calls == 2
    assert written.entries[-1].deed.reason == "one for all"


def test_failures_do_not_hide_what_was_read_or_cancelled() -> None:
    written = Written()
    for number in range(5 * MAX_DIFFERENT):
        written.trail.note(replace(READ, status_code=5, generation_id=f"junk-{number}"))
    written.read(7)
    for number in range(5 * MAX_DIFFERENT):
        written.read(1_000 + number)
    written.trail.note(replace(READ, action=AuditAction.CANCEL, generation_id="it-8"))
    seen = [(it.deed.action, it.deed.generation_id) for it in written.entries]
    assert (AuditAction.READ_CONTENT, "it-7") in seen
    assert seen[-1] == (AuditAction.CANCEL, "it-8")
    assert len(written.entries) == 2 * (MAX_DIFFERENT + 1) + 1


def test_levels_leave_out_reads_or_everything() -> None:
    for level, actions in (
        (AuditLevel.OFF, []),
        (AuditLevel.WRITES, [AuditAction.CANCEL, AuditAction.READ_AUDIT]),
    ):
        written = Written(level)
        for action in (AuditAction.READ, AuditAction.CANCEL, AuditAction.READ_AUDIT):
            written.trail.note(replace(READ, action=action))
        assert [it.deed.action for it in written.entries] == actions
        assert written.trail.is_on == bool(actions)


def test_lost_journal_ends_no_call_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def write(_: AuditEntry) -> None:
        raise JournalError("the disk is gone")

    trail = AuditTrail(AuditLevel.ALL, write)
    for caller in ("alice", "bob"):
        trail.note(replace(READ, caller_id=caller))
    assert caplog.messages == ["the audit cannot be written: the disk is gone"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("erasure request 4711", "erasure request 4711"),
        ("L%C3%B6schung", "Löschung"),
        (b"L\xc3\xb6schung", "Löschung"),
        ("a%0Ab%00c", "a b c"),
        ("100%", "100%"),
        ("x" * 10_000, "x" * MAX_REASON_CHARACTERS),
        ("%C3%B6" * 10_000, "ö" * MAX_REASON_CHARACTERS),
        ("", ""),
    ],
)
def test_reason_is_decoded_printable_and_bounded(given: str | bytes, reason: str) -> None:
    assert parse_reason(given) == reason


def test_deed_tells_if_content_was_shown() -> None:
    context = TraceContext("4b" * 16, "0a" * 8)
    numbers = Identity("bob", frozenset({Scope.READ}))

    def find_action(method: str, identity: Identity) -> AuditAction | None:
        caller = Caller(method, context, "192.0.2.7", 1, identity.id)
        deed = make_deed(caller, identity, 7, 0, generation_id="one")
        return None if deed is None else deed.action

    assert find_action(GET, ANYONE) is AuditAction.READ_CONTENT
    assert find_action(GET, numbers) is AuditAction.READ
    assert find_action("whence.v1.ModelService/GetModel", ANYONE) is None
    assert find_action("whence.v1.NewService/New", ANYONE) is None
    streams = "whence.v1.GenerationService/ResumeGeneration"
    assert find_action(streams, Identity("it", frozenset({Scope.GENERATE}))) is (
        AuditAction.READ_CONTENT
    ), "it streams one's own content"


def test_every_method_that_needs_a_scope_of_data_is_in_the_audit() -> None:
    silent = {name for name, rule in TABLE.items() if rule.action is None}
    assert silent == {
        *(f"whence.v1.ModelService/{name}" for name in ("ListModels", "GetModel", "GetVocabulary")),
        *(f"grpc.health.v1.Health/{name}" for name in ("Check", "List", "Watch")),
        *(f"grpc.reflection.{v}.ServerReflection/ServerReflectionInfo" for v in ("v1", "v1alpha")),
        *("GET /v1/models", "GET /v1/models/{model:.+}", "GET /metrics", "GET /healthz"),
        *("whence.v1.ProofService/GetKeys", "GET /keys.json"),
        # They show no record. Failed logins are counted and logged.
        *("POST /login", "POST /logout", "GET /api/v1/server", "GET /api/v1/vocabulary"),
        *("GET /api/v1/models", "GET /api/v1/models/{model:.+}"),
        *(
            f"whence.v1.TransparencyLogService/{name}"
            for name in ("GetCheckpoint", "ProveConsistency", "ProveInclusion")
        ),
    }
