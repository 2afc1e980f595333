"""Entries whose bytes were garbled: left out one by one, and never in the way of the others."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics_parts import measuring
from span_reading import only_span
from telemetry_journal import MemoryJournal, call, finished, started, step

from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.domain.telemetry import ContentCapture
from whence_server.telemetry.journal import UnreadableEntryError
from whence_server.telemetry.spans.encoder import SpanEncoder
from whence_server.telemetry.spans.events import EventEncoder


def journal_of_all_kinds() -> MemoryJournal:
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", processor_names=["top_p"]))
    candidates = step_pb2.Candidates(
        token_ids=[7, 50_256], logprobs=[-0.25, -1.5], sampling_logprobs=[-0.1, -2.0]
    )
    effects = step_pb2.ProcessorEffects(num_kept=[2], removed_mass=[0.25], token_logprobs=[-0.1])
    for index in range(3):
        decided = step(index, candidates=candidates, processors=effects)
        journal.append("g", EntryKind.STEP, decided)
    beam_round = generation_pb2.BeamRound()
    beam_round.continuations.add(token_id=1, logprob=-1.0, score=-1.0, kept=True)
    journal.append("g", EntryKind.BEAM_ROUND, beam_round)
    journal.append("g", EntryKind.FINISHED, finished(3, queue_ns=5, prefill_ns=5, decode_ns=10))
    journal.append("g", EntryKind.CALL, call("g", 3))
    return journal


WHOLE = journal_of_all_kinds()


@st.composite
def garbled(draw: st.DrawFn) -> MemoryJournal:
    """The journal with one of its entries changed: bytes replaced, left out or put in."""
    journal = journal_of_all_kinds()
    place = draw(st.integers(0, len(journal.entries) - 1))
    entry = journal.entries[place]
    begin = draw(st.integers(0, len(entry.payload)))
    end = min(begin + draw(st.integers(0, 8)), len(entry.payload))
    payload = entry.payload[:begin] + draw(st.binary(max_size=12)) + entry.payload[end:]
    journal.entries[place] = entry._replace(payload=payload)
    return journal


@settings(max_examples=300)
@given(garbled())
async def test_a_damaged_entry_raises_only_an_unreadable_entry_error(journal):
    """Another error would count as one of the journal, and be retried forever."""
    content = ContentCapture.SPAN_AND_EVENT
    for encode in (
        SpanEncoder(journal, 2, content=content).encode,
        EventEncoder(journal, content).encode,
    ):
        for entry in journal.entries:
            with suppress(UnreadableEntryError):
                assert isinstance(await encode(entry), list)


@pytest.mark.parametrize("place", range(len(WHOLE.entries)))
async def test_undamaged_entries_make_their_spans_beside_damaged_ones(place):
    """An entry that is no message is reported once, and the call stands by itself."""
    journal = journal_of_all_kinds()
    bad = journal.entries[place]._replace(payload=b"\xff\xff\xff")
    journal.entries[place] = bad
    encoder = SpanEncoder(journal)
    names = []
    for entry in journal.entries:
        if entry is bad:
            with pytest.raises(UnreadableEntryError, match=f"entry {entry.position} .*'g'"):
                await encoder.encode(entry)
        else:
            names += [only_span(piece).name for piece in await encoder.encode(entry)]
    expected = 2 if bad.kind is EntryKind.STEP else 3
    if bad.kind is EntryKind.STARTED:
        assert names == ["whence.v1.GenerationService/Generate"]
    else:
        assert names.count("decode_step") == expected
        assert names.count("text_completion demo") == (bad.kind is not EntryKind.FINISHED)


@settings(max_examples=25)
@given(garbled())
async def test_metrics_continue_after_damaged_entries(journal):
    entries, journal.entries = journal.entries, []
    async with measuring(journal) as metrics:
        journal.entries += entries
        journal.append_generation("h", 4)
        assert await metrics.flush(30)
        page = metrics.page.render("").body.decode()
    assert "whence_generations_finished_total" in page
