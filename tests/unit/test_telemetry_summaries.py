"""Summaries, names and flags on spans: texts from kept vocabularies, the same at every sending."""

import math
from pathlib import Path

import pytest
from span_reading import attributes, encoded, named, only_span, spans_of
from telemetry_journal import MemoryJournal, finished, started, step

from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.domain.telemetry import ContentCapture
from whence_server.journal.vocabularies import FOLDER, Vocabularies
from whence_server.telemetry.spans import blocks, pages
from whence_server.telemetry.spans import likelihoods as book
from whence_server.telemetry.spans.encoder import SpanEncoder

OLD, NEW = "a" * 64, "b" * 64
OLD_TOKENS = [f" old{token_id}".encode() for token_id in range(8)]
NEW_TOKENS = [f" new{token_id}".encode() for token_id in range(9)]
TEXTS = {"content": ContentCapture.SPAN_ONLY, "token_span_names": True}
SUMMARY = "whence.step.summary"


def append(
    journal: MemoryJournal, generation_id: str, digest: str, probabilities: list[list[float]]
) -> None:
    """Append a generation with a sequence for each list of probabilities."""
    num_sequences = len(probabilities)
    start = started(generation_id, num_sequences=num_sequences, tokenizer_digest=digest)
    journal.append(generation_id, EntryKind.STARTED, start)
    for index in range(max(map(len, probabilities))):
        for sequence_index, its in enumerate(probabilities):
            if index < len(its):
                journal.append(
                    generation_id,
                    EntryKind.STEP,
                    step(
                        index,
                        sequence_index,
                        token_id=index % 8,
                        logprob=math.log(its[index]),
                        candidates=step_pb2.Candidates(token_ids=[1, 2], logprobs=[-0.5, -2]),
                    ),
                )
    journal.append(generation_id, EntryKind.FINISHED, finished(3, num_sequences))


def keep(folder: Path, digest: str, tokens: list[bytes], position: int) -> Vocabularies:
    vocabularies = Vocabularies(folder)
    vocabularies.keep(digest, tokens, position)
    return vocabularies


async def test_a_backlog_of_an_earlier_model_is_sent_with_its_texts_and_the_same_again(tmp_path):
    """The server is restarted with another tokenizer, at every entry of the journal in turn."""
    journal = MemoryJournal()
    keep(tmp_path, OLD, OLD_TOKENS, 0)
    append(journal, "first", OLD, [[0.5, 0.004, 0.2], [0.9]])
    first = await encoded(journal, vocabularies=Vocabularies(tmp_path), **TEXTS)
    keep(tmp_path, NEW, NEW_TOKENS, journal.committed_position)
    append(journal, "second", NEW, [[0.5]])
    whole = await encoded(journal, vocabularies=Vocabularies(tmp_path), **TEXTS)
    assert whole[: len(first)] == first
    names = {only_span(piece).name for piece in whole}
    assert {'decode_step " old0"', 'decode_step " old1"', 'decode_step " new0"'} <= names
    for place in range(len(journal.entries)):
        restarted = SpanEncoder(journal, vocabularies=Vocabularies(tmp_path), **TEXTS)
        rest = [p for entry in journal.entries[place:] for p in await restarted.encode(entry)]
        assert rest == whole[len(whole) - len(rest) :]


async def test_the_summary_names_tokens_by_their_text_where_that_is_allowed(tmp_path):
    journal = MemoryJournal()
    vocabularies = keep(tmp_path, OLD, OLD_TOKENS, 0)
    append(journal, "g", OLD, [[0.5, 0.004]])
    told = {}
    for content in (ContentCapture.SPAN_ONLY, ContentCapture.EVENT_ONLY):
        spans = await spans_of(journal, content=content, vocabularies=vocabularies)
        told[content] = [attributes(named(spans, name)[-1])[SUMMARY] for name in ALL_STEP_SPANS]
    assert told[ContentCapture.SPAN_ONLY] == [
        (
            '" old1" 0.4% (drawn at 28.7%), 2 tokens likelier; " old2" 13.5%; '
            'won by 0.25 nats over " old7"'
        ),
        (
            '2 tokens, mean probability 25.2%, least 0.4%; least likely: " old1" 0.4% at 0/1, '
            '" old0" 50.0% at 0/0'
        ),
        (
            '2 tokens, mean probability 25.2%, least 0.4%; least likely: " old1" 0.4% at 0/1, '
            '" old0" 50.0% at 0/0'
        ),
    ]
    assert told[ContentCapture.EVENT_ONLY] == [
        line.replace('" old', "#").replace('"', "") for line in told[ContentCapture.SPAN_ONLY]
    ]


ALL_STEP_SPANS = ("decode_step", "decode", "text_completion demo")


async def test_a_generation_older_than_its_vocabulary_is_named_by_ids_for_ever(tmp_path):
    """Its spans may have been sent before the vocabulary was there."""
    journal = MemoryJournal()
    append(journal, "g", OLD, [[0.5]])
    without = await encoded(journal, vocabularies=Vocabularies(tmp_path), **TEXTS)
    keep(tmp_path, OLD, OLD_TOKENS, journal.committed_position)
    assert await encoded(journal, vocabularies=Vocabularies(tmp_path), **TEXTS) == without
    assert "decode_step 0" in {only_span(piece).name for piece in without}
    append(journal, "later", OLD, [[0.5]])
    spans = await spans_of(journal, vocabularies=Vocabularies(tmp_path), **TEXTS)
    assert 'decode_step " old0"' in {span.name for span in spans}


@pytest.mark.parametrize("damage", ["missing", "bytes", "digest", "header", "unreadable"])
async def test_ids_stand_in_for_a_vocabulary_that_cannot_be_read(tmp_path, damage):
    journal = MemoryJournal()
    keep(tmp_path, OLD, OLD_TOKENS, 0)
    append(journal, "g", OLD, [[0.5]])
    path = tmp_path / FOLDER / OLD
    match damage:
        case "missing":
            path.unlink()
        case "bytes":
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        case "digest":
            path.rename(path.with_name(NEW))
        case "header":
            path.write_bytes(b"[]\n")
        case "unreadable":
            path.unlink()
            path.mkdir()
    spans = await spans_of(journal, vocabularies=Vocabularies(tmp_path), **TEXTS)
    assert "decode_step 0" in {span.name for span in spans}
    assert '" old' not in str(spans)


async def test_a_vocabulary_is_written_once_and_only_a_longer_one_replaces_it(tmp_path):
    vocabularies = keep(tmp_path, OLD, OLD_TOKENS, 5)
    path = tmp_path / FOLDER / OLD
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    written = path.read_bytes()
    vocabularies.keep(OLD, OLD_TOKENS, 9)
    vocabularies.keep(OLD, OLD_TOKENS[:3], 9)
    assert path.read_bytes() == written
    found = await vocabularies.find(OLD, 6)
    assert found is not None
    assert list(found.tokens) == OLD_TOKENS
    vocabularies.keep(OLD, [*OLD_TOKENS, b"more"], 9)
    found = await vocabularies.find(OLD, 6)
    assert found is not None
    assert list(found.tokens) == [*OLD_TOKENS, b"more"]
    assert await vocabularies.find(OLD, 5) is None
    # Another journal has taken the place of the first one: its positions begin again.
    vocabularies.keep(OLD, OLD_TOKENS, 2)
    assert await vocabularies.find(OLD, 3) is not None
    assert [p.name for p in path.parent.iterdir()] == [OLD]


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 200])
async def test_only_a_digest_names_a_file(tmp_path, digest):
    vocabularies = keep(tmp_path, digest, OLD_TOKENS, 0)
    assert await vocabularies.find(digest, 1) is None
    assert not (tmp_path / FOLDER).exists()


async def test_a_vocabulary_that_cannot_be_written_is_reported_and_nothing_else(tmp_path, caplog):
    (tmp_path / FOLDER).write_text("in the way")
    vocabularies = keep(tmp_path, OLD, OLD_TOKENS, 0)
    assert "cannot be kept" in caplog.text
    assert await vocabularies.find(OLD, 1) is None


@pytest.mark.parametrize("step_spans", [1_000, 1, 0])
async def test_a_generation_is_flagged_however_its_steps_are_sent(monkeypatch, step_spans):
    """Also after a restart at any entry: what is missing is counted again from the journal."""
    monkeypatch.setattr(blocks, "STEPS_PER_BLOCK", 2)
    journal = MemoryJournal()
    append(journal, "likely", OLD, [[0.5, 0.5]])
    append(journal, "unlikely", OLD, [[0.5, 0.004, 0.2], [0.9, 0.002]])
    whole = await encoded(journal, step_spans=step_spans)
    likely, unlikely = named([only_span(piece) for piece in whole], "text_completion demo")
    found = attributes(likely)
    assert "whence.generation.unlikely" not in found
    assert found["whence.generation.num_unlikely"] == 0
    assert found["whence.generation.least_likely_index"] == 0
    found = attributes(unlikely)
    assert found["whence.generation.unlikely"] is True
    assert found["whence.generation.num_unlikely"] == 2
    assert found["whence.generation.least_likely_sequence"] == 1
    assert found["whence.generation.least_likely_index"] == 1
    assert found["whence.generation.least_likely_probability"] == pytest.approx(0.002)
    for place in range(len(journal.entries)):
        restarted = SpanEncoder(journal, step_spans)
        rest = [p for entry in journal.entries[place:] for p in await restarted.encode(entry)]
        assert rest == whole[len(whole) - len(rest) :]


async def test_entries_that_are_encoded_out_of_turn_count_once(monkeypatch):
    """The exporter tries later spans early, and reads a batch again after a failure."""
    monkeypatch.setattr(pages, "_PAGE", 2)
    journal = MemoryJournal()
    append(journal, "g", OLD, [[0.5, 0.004, 0.2], [0.9, 0.002]])
    whole = await encoded(journal)
    encoder = SpanEncoder(journal)
    order = [*range(len(journal.entries)), 3, 0, 5, 6, *range(2, len(journal.entries))]
    for place in [6, 3, *order]:
        entry = journal.entries[place]
        made = await encoder.encode(entry)
        assert made == [] or made[0] in whole


async def test_a_running_generation_that_is_forgotten_is_counted_again(monkeypatch):
    monkeypatch.setattr(book, "_MAX_GENERATIONS", 1)
    journal = MemoryJournal()
    for name in ("a", "b"):
        append(journal, name, OLD, [[0.5, 0.004]])
    # As if both ran at once.
    interleaved = [
        entry
        for pair in zip(journal.entries[:4], journal.entries[4:], strict=True)
        for entry in pair
    ]
    encoder = SpanEncoder(journal)
    pieces = [piece for entry in interleaved for piece in await encoder.encode(entry)]
    assert sorted(pieces) == sorted(await encoded(journal))


async def test_an_unreadable_or_unmeasured_step_does_not_count():
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    journal.append("g", EntryKind.STEP, step(0, logprob=None))
    journal.append("g", EntryKind.STEP, step(1, logprob=math.log(0.3)))
    unreadable = journal.append("g", EntryKind.STEP, step(2))
    journal.append("g", EntryKind.STEP, step(3, logprob=math.log(0.5)))
    journal.append("g", EntryKind.FINISHED, finished(4))
    journal.entries[unreadable.position - 1] = unreadable._replace(payload=b"\xff")
    encoder, pieces = SpanEncoder(journal), []
    for entry in journal.entries:
        if entry.position != unreadable.position:
            pieces += await encoder.encode(entry)
    (generation,) = named([only_span(piece) for piece in pieces], "text_completion demo")
    line = attributes(generation)[SUMMARY]
    assert line.startswith("3 tokens, mean probability 40.0%, least 30.0%")


@pytest.mark.parametrize("step_spans", [1_000, 0])
async def test_summaries_may_be_left_out_and_the_flags_stay(step_spans):
    journal = MemoryJournal()
    append(journal, "g", OLD, [[0.5, 0.004]])
    one = generation_pb2.BeamRound(timing=step(0).timing)
    journal.append("g", EntryKind.BEAM_ROUND, one)
    spans = await spans_of(journal, step_spans=step_spans, step_summary=False)
    assert SUMMARY not in str(spans)
    assert attributes(named(spans, "text_completion demo")[0])["whence.generation.unlikely"] is True
    with_summaries = await spans_of(journal, step_spans=step_spans)
    lacking = [s.name for s in with_summaries if SUMMARY not in attributes(s)]
    assert set(lacking) <= {"queue", "prefill"}


async def test_a_round_of_beam_search_has_a_summary_and_short_numbers():
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    kept = generation_pb2.BeamContinuation(token_id=5, score=-0.69947314, kept=True)
    one = generation_pb2.BeamRound(continuations=[kept], timing=step(0).timing)
    journal.append("g", EntryKind.BEAM_ROUND, one)
    (span,) = await spans_of(journal)
    found = attributes(span)
    assert found[SUMMARY] == "1 kept: #5 -0.70"
    assert found["whence.beam_round.best_score"] == -0.69947314
