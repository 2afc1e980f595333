"""Search of a journal in both databases: found behind the commits, gone with a deletion."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest

from whence.v1 import generation_pb2 as g
from whence.v1 import step_pb2, trace_pb2
from whence_server.domain.decoding import FinishReason
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import InvalidRequestError, NotOfferedError
from whence_server.domain.tracing import TraceContext
from whence_server.journal.journal import Journal
from whence_server.journal.rows import FinishIndex, GenerationIndex, ListFilter
from whence_server.journal.search import budget, candidates, comparing
from whence_server.journal.search import search as search_module
from whence_server.journal.search.comparing import Match
from whence_server.journal.search.search import MAX_COMPARED, Hit, Search
from whence_server.journal.search.texts import Part
from whence_server.journal.verify import verify_journal
from whence_server.rpc.calls import Call
from whence_server.rpc.trace_servicer import TraceServicer

SENTENCE = "The capital of France is Paris, which lies on the Seine."
ALL = ListFilter()


def make_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def record(
    journal: Journal,
    number: int,
    *outputs: str,
    prompt: str = "",
    model: str = "tiny",
    owner: str = "",
) -> str:
    """Record a generation whose steps have one word each; return its id."""
    generation_id = make_id(number)
    started = g.GenerationStarted(generation_id=generation_id, model=model, prompt=prompt)
    index = GenerationIndex(
        generation_id, f"{number:032x}", model, number, "", {"number": str(number)}, "", 0, owner
    )
    journal.create(index, started.SerializeToString())
    for sequence, text in enumerate(outputs):
        begin = 0
        for place, word in enumerate(text.split(" ")):
            end = begin + len(word.encode()) + (1 if place else 0)
            step = step_pb2.Step(
                sequence_index=sequence, index=place, text_begin_byte=begin, text_end_byte=end
            )
            journal.append(generation_id, EntryKind.STEP, step.SerializeToString())
            begin = end
    finished = g.GenerationFinished(
        finish_reason=g.FINISH_REASON_LENGTH,
        sequences=[
            g.SequenceResult(sequence_index=sequence, text=text)
            for sequence, text in enumerate(outputs)
        ],
    )
    journal.finish(
        generation_id, finished.SerializeToString(), FinishIndex(FinishReason.LENGTH, 3, "")
    )
    return generation_id


@asynccontextmanager
async def searching(directory: Path) -> AsyncIterator[tuple[Journal, Search]]:
    journal = await Journal.open(directory)
    try:
        search = Search(journal)
        async with search.running():
            yield journal, search
    finally:
        await journal.close()


async def find(
    journal: Journal, search: Search, text: str = SENTENCE, wanted: ListFilter = ALL
) -> list[Hit]:
    """Return the first hits, once everything that is recorded by now is indexed."""
    await journal.flush()
    assert await search.indexer.flush(60)
    return (await search.find(text, wanted, limit=100)).hits


async def test_exact_hits_come_first_at_their_token(each_store: str, tmp_path: Path) -> None:
    async with searching(tmp_path) as (journal, search):
        most = record(journal, 1, "I say: the capital of France is Paris, which is on the Seine.")
        exact = record(journal, 2, "No.", f"I say: {SENTENCE.upper()} Is that so?")
        asked = record(journal, 3, "Yes.", prompt=f"Is this so? {SENTENCE}")
        record(journal, 4, "Nothing of it stands here, although the Seine is on the map.")
        hits = await find(journal, search)
    assert [hit.row.generation_id for hit in hits] == [asked, exact, most]
    assert [hit.share == 1 for hit in hits] == [True, True, False]
    assert [hit.found.part for hit in hits] == [Part.PROMPT, Part.OUTPUT, Part.OUTPUT]
    assert [hit.step for hit in hits] == [None, 2, 2]
    assert hits[1].found.sequence == 1
    assert hits[1].excerpt == ("I say: ", SENTENCE.upper(), " Is that so?")


async def test_a_deletion_removes_what_finds_a_generation(each_store: str, tmp_path: Path) -> None:
    async with searching(tmp_path) as (journal, search):
        kept, gone = record(journal, 1, SENTENCE), record(journal, 2, SENTENCE)
        assert len(await find(journal, search)) == 2
        await journal.delete(gone)
        assert [hit.row.generation_id for hit in await find(journal, search)] == [kept]
        left = await journal.tree.read(
            lambda it: it.execute("SELECT count(DISTINCT generation) FROM passages").fetchall()
        )
        assert [tuple(row) for row in left] == [(1,)]


async def test_a_generation_that_was_deleted_before_it_was_indexed_is_not_found(
    each_store: str, tmp_path: Path
) -> None:
    journal = await Journal.open(tmp_path)
    gone = record(journal, 1, SENTENCE)
    await journal.flush()
    await journal.delete(gone)
    await journal.close()
    async with searching(tmp_path) as (journal, search):
        assert await find(journal, search) == []
        rows = await journal.tree.read(lambda it: it.execute("SELECT * FROM passages").fetchall())
        assert rows == []


async def test_verification_notices_passages_of_a_deleted_generation(tmp_path: Path) -> None:
    async with searching(tmp_path) as (journal, search):
        gone = record(journal, 1, SENTENCE)
        await find(journal, search)
        rows = await journal.tree.read(lambda it: it.execute("SELECT * FROM passages").fetchall())
        await journal.delete(gone)
        await journal.flush()
    report = verify_journal(tmp_path)
    assert not report.findings
    database = apsw.Connection(str(tmp_path / "journal.db"))
    database.execute("INSERT INTO passages VALUES (?, ?, ?, ?)", rows[0])
    database.close()
    (finding,) = verify_journal(tmp_path).findings
    assert finding.table == "passages"
    assert "deleted" in finding.detail


async def test_an_older_journal_is_read_from_its_beginning_once(
    each_store: str, tmp_path: Path
) -> None:
    journal = await Journal.open(tmp_path)
    old = record(journal, 1, SENTENCE)
    await journal.close()
    for _ in range(2):
        async with searching(tmp_path) as (journal, search):
            assert [hit.row.generation_id for hit in await find(journal, search)] == [old]
            assert search.indexer.num_entries_behind == 0
            # Its cursor is written with the next commit.
            record(journal, 2 + _, "nothing of it")


async def test_a_filter_bounds_the_search(each_store: str, tmp_path: Path) -> None:
    async with searching(tmp_path) as (journal, search):
        mine = record(journal, 1, SENTENCE, owner="me")
        other = record(journal, 2, SENTENCE, model="large", owner="you")
        for wanted, expected in (
            (ListFilter(owner="me"), [mine]),
            (ListFilter(model="large"), [other]),
            (ListFilter(labels={"number": "1"}), [mine]),
            (ListFilter(start_after_ns=1), [other]),
            (ListFilter(owner="nobody"), []),
        ):
            hits = await find(journal, search, wanted=wanted)
            assert [hit.row.generation_id for hit in hits] == expected


async def test_no_other_generation_pushes_one_out_of_a_filtered_search(
    each_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MAX_POSTINGS", 3)
    async with searching(tmp_path) as (journal, search):
        first = record(journal, 1, SENTENCE, owner="ann", model="large")
        planted = [record(journal, number, SENTENCE, owner="bob") for number in range(2, 6)]
        await find(journal, search)
        for wanted in (
            ListFilter(owner="ann"),
            ListFilter(model="large"),
            ListFilter(labels={"number": "1"}),
            ListFilter(start_before_ns=2),
        ):
            page = await search.find(SENTENCE, wanted, limit=100)
            assert [hit.row.generation_id for hit in page.hits] == [first]
            assert not page.is_cut
        page = await search.find(SENTENCE, ALL, limit=100)
        assert [hit.row.generation_id for hit in page.hits] == planted[:0:-1]
        assert page.is_cut


async def test_a_passage_of_its_own_finds_a_generation_among_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "MAX_POSTINGS", 3)
    own = f"{SENTENCE} And so on."
    async with searching(tmp_path) as (journal, search):
        first = record(journal, 1, own)
        for number in range(2, 6):
            record(journal, number, SENTENCE)
        await find(journal, search)
        page = await search.find(own, ALL, limit=100)
        assert page.hits[0].row.generation_id == first
        assert page.is_cut


async def test_long_texts_cost_a_bounded_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []

    def find_match(sentence: str, text: str) -> Match | None:
        compared.append(len(text))
        return comparing.find_match(sentence, text)

    monkeypatch.setattr(search_module, "find_match", find_match)
    long = "and so on " * 100_000
    async with searching(tmp_path) as (journal, search):
        for number in range(1, 4):
            record(journal, number, prompt=f"{long}é {SENTENCE} and so on")
        hits = await find(journal, search)
        begin = len(f"{long}é ".encode())
        assert [hit.bytes.begin for hit in hits] == 3 * [begin]
        assert sum(compared) <= 3 * 8_000
        monkeypatch.setattr(budget, "MOST_CHARACTERS", 8_000)
        page = await search.find(SENTENCE, ALL, limit=100)
        assert len(page.hits) == 1
        assert page.is_cut
        monkeypatch.setattr(budget, "MOST_S", 0.0)
        page = await search.find(SENTENCE, ALL, limit=100)
        assert (page.hits, page.is_cut) == ([], True)


async def test_the_step_of_a_hit_is_found_among_many(each_store: str, tmp_path: Path) -> None:
    async with searching(tmp_path) as (journal, search):
        first = " ".join(f"w{number}" for number in range(700))
        record(journal, 1, first, f"{first} {SENTENCE} {first}")
        (hit,) = await find(journal, search)
        assert (hit.found.sequence, hit.step) == (1, 700)


async def test_a_search_keeps_its_turn_until_its_thread_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, running = threading.Event(), threading.Event(), []

    def find_match(sentence: str, text: str) -> Match | None:
        running.append(1)
        begun.set()
        assert len(running) == 1, "two searches at one time"
        may_end.wait(60)
        running.pop()
        return comparing.find_match(sentence, text)

    async with searching(tmp_path) as (journal, search):
        record(journal, 1, SENTENCE)
        await find(journal, search)
        monkeypatch.setattr(search_module, "find_match", find_match)
        gone = asyncio.create_task(search.find(SENTENCE, ALL, limit=1))
        assert await asyncio.to_thread(begun.wait, 60)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        following = asyncio.create_task(search.find(SENTENCE, ALL, limit=1))
        # The other threads are free for it, were its turn.
        await journal.tree.read_long(lambda it: it.execute("SELECT 1").fetchall())
        assert not following.done()
        may_end.set()
        assert len((await following).hits) == 1


async def test_pages_have_every_hit_once(tmp_path: Path) -> None:
    async with searching(tmp_path) as (journal, search):
        recorded = [record(journal, number, SENTENCE) for number in range(1, 8)]
        await find(journal, search)
        found, token = [], ""
        while True:
            page = await search.find(SENTENCE, ALL, limit=3, token=token)
            found += [hit.row.generation_id for hit in page.hits]
            token = page.next_token
            if not token:
                break
        assert found == recorded[::-1]
        first = await search.find(SENTENCE, ALL, limit=3)
        for text, wanted in ((SENTENCE + " Indeed.", ALL), (SENTENCE, ListFilter(model="tiny"))):
            with pytest.raises(InvalidRequestError, match="page_token"):
                await search.find(text, wanted, limit=3, token=first.next_token)
        with pytest.raises(InvalidRequestError, match="page_token"):
            await search.find(SENTENCE, ALL, limit=3, token="é")


async def test_a_text_that_many_have_costs_a_bounded_number_of_comparisons(
    tmp_path: Path,
) -> None:
    async with searching(tmp_path) as (journal, search):
        for number in range(1, MAX_COMPARED + 21):
            record(journal, number, SENTENCE)
        await journal.flush()
        assert await search.indexer.flush(60)
        page = await search.find(SENTENCE, ALL, limit=1_000)
    assert len(page.hits) == MAX_COMPARED
    assert page.is_cut
    # The newest of them.
    assert page.hits[0].row.generation_id == make_id(MAX_COMPARED + 20)
    assert page.hits[-1].row.generation_id == make_id(21)


@pytest.mark.parametrize("text", ["", "too short", "  a   b   c  d  e ", "x" * 2_001])
async def test_a_text_of_the_wrong_length_is_refused(tmp_path: Path, text: str) -> None:
    async with searching(tmp_path) as (_, search):
        with pytest.raises(InvalidRequestError, match="from 20 to 2000 characters"):
            await search.find(text, ALL, limit=3)


async def test_a_search_of_an_encrypted_journal_is_refused(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path)
    try:
        servicer = TraceServicer(journal, asyncio.Event(), search=None)
        call = Call(TraceContext("1" * 32, "2" * 16), 0, 0, "")
        with pytest.raises(NotOfferedError, match="the journal is encrypted"):
            await servicer.search_generations(
                trace_pb2.SearchGenerationsRequest(text=SENTENCE), call
            )
    finally:
        await journal.close()
