"""Recording of explanations: what is said to be on record is on disk, and a result is not lost."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from whence.v1 import explain_pb2, explanation_pb2, generation_pb2, occurrence_pb2
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import (
    DrainingError,
    GenerationNotFoundError,
    JournalError,
    JournalUnwritableError,
    RecordDamagedError,
)
from whence_server.domain.occurrences import Caller
from whence_server.domain.tracing import TraceContext
from whence_server.generation.content.redaction import open_redaction
from whence_server.rpc import explain_recording
from whence_server.rpc.explain_recording import (
    MAX_BYTES,
    MAX_EXPLANATIONS,
    MAX_TOTAL_BYTES,
    make_occurrence,
    record_explanation,
)
from whence_server.rpc.explain_servicer import ExplainServicer

ID = "00000000-0000-4000-8000-000000000001"
CALLER = Caller("", TraceContext("1" * 32, "2" * 16), "unix")
GRPC_MESSAGE_BYTES = 4 << 20
"""Size of the messages that gRPC's clients take, if nothing else is set."""


class FakeJournal:
    """A journal of one generation, whose parts fail as they are told to."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.payloads: list[bytes] = []
        self.num_flushed = 0
        self.writes = asyncio.Event()
        self.writes.set()
        self.later = SimpleNamespace(record=self._record)

    async def read(self, generation_id: str, **_bounds: Any) -> list[Entry]:
        self._fail("read")
        kind = EntryKind.OCCURRENCE
        return [Entry(i, generation_id, 0, kind, each) for i, each in enumerate(self.payloads)]

    async def _record(self, _id: str, _owner: str, payload: bytes) -> None:
        self._fail("record")
        self.payloads.append(payload)

    async def flush(self) -> None:
        await self.writes.wait()
        self._fail("flush")
        self.num_flushed = len(self.payloads)

    def _fail(self, part: str) -> None:
        if part in self.errors:
            raise self.errors[part]


async def record(journal: Any, num_scores: int = 1) -> str:
    started = generation_pb2.GenerationStarted(generation_id=ID)
    output: Any = SimpleNamespace(started=started, num_steps=1)
    explanation = explanation_pb2.Explanation(scores=[0.5] * num_scores)
    return await record_explanation(journal, output, explanation, CALLER)


async def test_an_explanation_on_record_is_on_disk() -> None:
    journal = FakeJournal()
    assert await record(journal) == ""
    assert journal.num_flushed == 1


@pytest.mark.parametrize(
    "errors",
    [
        {"flush": JournalUnwritableError("the disk is full")},
        {"flush": JournalError("the writer has ended")},
        {"record": JournalError("the writer has ended")},
        {"read": JournalError("the database is away")},
        {"read": RecordDamagedError(ID, "its rows have changed")},
    ],
)
async def test_a_failing_journal_gives_a_reason_instead_of_an_error(
    errors: dict[str, Exception],
) -> None:
    assert await record(FakeJournal(**errors)) == "the journal cannot be read or written"


async def test_a_journal_that_does_not_write_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(explain_recording, "COMMIT_S", 0.01)
    journal = FakeJournal()
    journal.writes.clear()
    assert "has not written it" in await record(journal)


async def test_the_deletion_of_the_generation_is_told() -> None:
    with pytest.raises(GenerationNotFoundError):
        await record(FakeJournal(read=GenerationNotFoundError(ID, deleted=True)))


async def test_all_explanations_of_a_generation_fit_into_one_message() -> None:
    journal = FakeJournal()
    reasons = [await record(journal, num_scores=40_000) for _ in range(8)]
    assert reasons[:6] == [""] * 6
    assert f"{MAX_TOTAL_BYTES} is the most for all of them" in reasons[7]
    assert sum(map(len, journal.payloads)) < GRPC_MESSAGE_BYTES
    # A small one has room still, and other occurrences count for nothing.
    other = occurrence_pb2.Occurrence(num_steps=1).SerializeToString()
    journal.payloads += [other] * MAX_EXPLANATIONS
    assert await record(journal) == ""
    assert f"{MAX_BYTES} is the most" in await record(journal, num_scores=200_000)


async def test_the_number_of_explanations_is_bounded() -> None:
    journal = FakeJournal()
    for _ in range(MAX_EXPLANATIONS):
        assert await record(journal) == ""
    assert "the most for one" in await record(journal)


@pytest.mark.parametrize(
    ("context", "against", "stored"),
    [
        ("Write to", " anna@example.org", " [mail]"),
        # The address begins in the context.
        ("Write to anna@exa", "mple.org", "[redacted]"),
        ("Write to", " Anna", " Anna"),
    ],
)
def test_a_contrast_is_redacted_on_record(context: str, against: str, stored: str) -> None:
    redact = open_redaction(["mail"], None).redact_label
    segment = explanation_pb2.ContextSegment(text=context)
    span = explanation_pb2.ExplainedSpan(against_text=against, against_token_ids=[5, 6])
    given = explanation_pb2.Explanation(span=span, segments=[segment])
    started = generation_pb2.GenerationStarted(generation_id=ID)
    output: Any = SimpleNamespace(started=started, num_steps=1)
    made = make_occurrence(output, given, CALLER, redact).explained.explanation
    assert made.span.against_text == stored
    assert list(made.span.against_token_ids) == ([5, 6] if stored == against else [])
    assert made.segments[0].text == context
    # The caller's own answer has what it asked for.
    assert given.span.against_text == against


class FakeHost:
    """An analysis process that answers with one message."""

    has_model = True
    is_busy = False

    def __init__(self, message: explain_pb2.ExplainResponse) -> None:
        self._message = message.SerializeToString()

    async def ask(self, *_question: Any) -> AsyncGenerator[bytes, None]:
        yield self._message


@pytest.mark.parametrize("is_last", [True, False])
async def test_a_server_that_closes_after_the_result_ends_the_call_quietly(is_last: bool) -> None:
    found = explanation_pb2.Explanation(scores=[1.0])
    message = explain_pb2.ExplainResponse(
        **{"result" if is_last else "partial": found}  # type: ignore[arg-type]  # one of both
    )
    closing = asyncio.Event()
    host: Any = FakeHost(message)
    journal: Any = FakeJournal()
    call: Any = SimpleNamespace(identity=SimpleNamespace(id="a"), caller=CALLER)
    request = explain_pb2.ExplainRequest()
    request.given.prompt, request.given.text = "a b", " c"
    answers = ExplainServicer(journal, host, closing).explain(request, call)
    assert await anext(answers) == message.SerializeToString()
    closing.set()
    with pytest.raises(StopAsyncIteration if is_last else DrainingError):
        await anext(answers)
