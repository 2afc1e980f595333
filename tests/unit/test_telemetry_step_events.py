"""Steps as events: what they say, how they are bounded, and that they never change."""

import json
import math
from random import Random

import numpy as np
import pytest
from eventful import Vocabularies
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span
from span_reading import (
    assert_within_parents,
    attributes,
    encoded,
    mapping,
    named,
    only_span,
    spans_of,
    times,
)
from telemetry_journal import START_NS, MemoryJournal, call, finished, started, step

from whence.summary import name_by_id, summarise_step
from whence.v1.step_pb2 import Candidates, Draw, Internals, ProcessorEffects, Step
from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.telemetry import ContentCapture, StepForm
from whence_server.telemetry.otlp.attributes import encode_attributes
from whence_server.telemetry.spans import decode_parts, encoder, token_arrays
from whence_server.telemetry.spans.encoder import SpanEncoder

EVENTS = {"step_form": StepForm.EVENTS}
WITH_TEXT = {"content": ContentCapture.SPAN_ONLY, "vocabularies": Vocabularies()}
MEGABYTE = 1_000_000
LOWEST = -3.4028235e38


def make_candidates(num: int, first: int = 500, num_removed: int = 0) -> Candidates:
    kept = [-0.25 * (i + 1) for i in range(num - num_removed)]
    return Candidates(
        token_ids=range(first, first + num),
        logprobs=[-0.5 * (i + 1) for i in range(num)],
        sampling_logprobs=kept + [-math.inf] * num_removed,
    )


def chosen(index: int, sequence: int = 0, **fields: object) -> Step:
    """Return a step like those of a sampled generation with two processors."""
    draw = Random(index)
    ids = [draw.randrange(50_000) for _ in range(8)]
    candidates = make_candidates(8, num_removed=3)
    candidates.token_ids[:] = ids
    effects = ProcessorEffects(
        num_kept=[50_257, 96], removed_mass=[0, 0.05], token_logprobs=[-1.9, -1.8]
    )
    own = {"token_id": ids[2], "logprob": -1.5, "candidates": candidates, "processors": effects}
    return step(index, sequence, **{**own, **fields})


def generated(steps: list[Step], num_sequences: int = 1, **fields: object) -> MemoryJournal:
    journal = MemoryJournal()
    fields = {"tokenizer_digest": "ab", **fields}
    start = started("g", num_sequences=num_sequences, **fields)
    journal.append("g", EntryKind.STARTED, start)
    for one in steps:
        journal.append("g", EntryKind.STEP, one)
    num_steps = max((one.index + 1 for one in steps), default=0)
    journal.append("g", EntryKind.FINISHED, finished(num_steps, num_sequences))
    journal.append("g", EntryKind.CALL, call("g", num_steps))
    return journal


def short(value: float) -> float:
    return LOWEST if value == -math.inf else float(str(np.float32(value)))


def shorts(values: list[float]) -> list[float] | None:
    return [short(value) for value in values] or None


def known(message: object, field: str) -> float | int | None:
    if not message.HasField(field):
        return None
    value = getattr(message, field)
    return short(value) if isinstance(value, float) else value


def expect_events(one: Step) -> list[Span.Event]:
    """Return a step's events, built field by field from its record."""
    tried, draw, effects, seen = one.candidates, one.draw, one.processors, one.internals
    places = [i for i, token_id in enumerate(tried.token_ids) if token_id != one.token_id]
    sampling = [tried.sampling_logprobs[i] for i in places]
    while sampling and sampling[-1] == -math.inf:
        sampling.pop()
    attributes = {
        "whence.step.summary": summarise_step(one, name_by_id, "sample"),
        "whence.token.unlikely": one.logprob < math.log(0.01) or None,
        "gen_ai.iteration.total_tokens": one.index + 1,
        "whence.token.rank": known(one, "rank"),
        "whence.draw.runner_up_token_id": known(draw, "runner_up_token_id"),
        "gen_ai.response.candidate.token_ids": [
            one.token_id,
            *(tried.token_ids[i] for i in places),
        ],
        "whence.processors.num_kept": list(effects.num_kept) or None,
        "whence.step.entropy": known(one, "entropy"),
        "whence.step.sampling_entropy": known(one, "sampling_entropy"),
        "whence.draw.noise": short(draw.noise) if one.HasField("draw") else None,
        "whence.draw.margin": known(draw, "margin"),
        "gen_ai.response.candidate.logprobs": shorts(
            [one.logprob, *(tried.logprobs[i] for i in places)]
        ),
        "whence.response.candidate.sampling_logprobs": shorts([one.sampling_logprob, *sampling]),
        "whence.processors.removed_mass": shorts(effects.removed_mass),
        "whence.processors.token_logprobs": shorts(effects.token_logprobs),
        "whence.source.positions": list(seen.source_positions) or None,
        "whence.source.shares": shorts(seen.source_shares),
        "whence.source.self_share": known(seen, "self_share"),
        "whence.source.sink_share": known(seen, "sink_share"),
    }
    end = START_NS + one.timing.elapsed_ns
    cost = one.timing.select_ns + (one.timing.forward_ns if one.index else 0)
    return [
        Span.Event(
            time_unix_nano=end - cost + 1_000,
            name="gen_ai.token.scheduled",
            attributes=encode_attributes(
                {"gen_ai.iteration.batch_size": one.timing.batch_size or None}
            ),
        ),
        Span.Event(
            time_unix_nano=end,
            name="gen_ai.token.generated",
            attributes=encode_attributes(attributes),
        ),
    ]


CASES = {
    "sampled": chosen(0),
    "later": chosen(7),
    "beyond its candidates": chosen(1, token_id=60_000, rank=40),
    "the first candidate": step(2, token_id=500, candidates=make_candidates(4), rank=0),
    "without candidates": step(3),
    "unlikely": chosen(4, logprob=-9.5),
    "without a draw": step(5, draw=None, rank=0, candidates=make_candidates(2)),
    "the only token": chosen(6, draw=Draw(noise=0.5)),
    "removed in the middle": chosen(
        8,
        candidates=Candidates(
            token_ids=[1, 2, 3, 4],
            logprobs=[-0.1, -2.7, -3.1, -4.9],
            sampling_logprobs=[-0.2, -math.inf, -1.3, -math.inf],
        ),
    ),
    "with sources": chosen(
        9, internals=Internals(source_positions=[3, 0], source_shares=[0.3, 0.1], self_share=0.6)
    ),
    "with a sink": chosen(
        10,
        internals=Internals(
            source_positions=[3], source_shares=[0.3], self_share=0.3, sink_share=0.4
        ),
    ),
}


@pytest.mark.parametrize("one", CASES.values(), ids=CASES.keys())
async def test_the_events_of_a_step_are_what_the_record_says(one: Step) -> None:
    (decode,) = named(await spans_of(generated([one]), **EVENTS), "decode")
    expected = expect_events(one)
    assert [(it.time_unix_nano, it.name) for it in decode.events] == [
        (it.time_unix_nano, it.name) for it in expected
    ]
    for event, other in zip(decode.events, expected, strict=True):
        assert mapping(event.attributes) == mapping(other.attributes)


async def test_texts_are_on_events_only_where_they_are_allowed_and_known() -> None:
    journal = generated([step(0, token_id=7, candidates=make_candidates(2, first=6))])
    key = "gen_ai.response.candidate.decoded_tokens"
    (allowed,) = named(await spans_of(journal, **EVENTS, **WITH_TEXT), "decode")
    assert mapping(allowed.events[1].attributes)[key] == [" t7", " t6"]
    unknown = {**WITH_TEXT, "vocabularies": None}
    for options in ({}, unknown, {"vocabularies": Vocabularies()}):
        (decode,) = named(await spans_of(journal, **EVENTS, **options), "decode")
        assert key not in mapping(decode.events[1].attributes)


async def test_without_recorded_ids_the_numbers_have_the_token_first() -> None:
    candidates = Candidates(logprobs=[-0.5, -1.5, -2.5], sampling_logprobs=[-0.25, -0.5, -1.0])
    one = step(0, token_id=None, rank=1, logprob=-1.5, candidates=candidates)
    (decode,) = named(await spans_of(generated([one]), **EVENTS), "decode")
    found = mapping(decode.events[1].attributes)
    assert "gen_ai.response.candidate.token_ids" not in found
    assert found["gen_ai.response.candidate.logprobs"] == [-1.5, -0.5, -2.5]


async def test_candidates_can_be_left_out() -> None:
    journal = generated([chosen(0)])
    options = {"step_candidates": False, "token_arrays": 1}
    spans = await spans_of(journal, **EVENTS, **options)
    found = mapping(named(spans, "decode")[0].events[1].attributes)
    token_id = chosen(0).token_id
    assert found["gen_ai.response.candidate.token_ids"] == [token_id]
    assert found["gen_ai.response.candidate.logprobs"] == [-1.5]
    (generation,) = named(spans, "text_completion demo")
    ids = attributes(generation)["gen_ai.response.candidate.per_position_token_ids"]
    assert ids == f"[[{token_id}]]"


async def test_a_trace_of_a_thousand_tokens_has_six_spans() -> None:
    journal = generated([chosen(index) for index in range(1_000)])
    ending = finished(1_000, queue_ns=2_000_000, prefill_ns=8_000_000, decode_ns=4_000_000_000)
    place = next(i for i, it in enumerate(journal.entries) if it.kind is EntryKind.FINISHED)
    payload = ending.SerializeToString()
    journal.entries[place] = journal.entries[place]._replace(payload=payload)
    spans = await spans_of(journal, **EVENTS)
    assert sorted(span.name for span in spans) == [
        *("decode", "decode", "prefill", "queue", "text_completion demo"),
        "whence.v1.GenerationService/Generate",
    ]
    decodes = named(spans, "decode")
    assert [len(span.events) for span in decodes] == [1_000, 1_000]
    first = next(span for span in decodes if attributes(span)["whence.decode.part"] == 0)
    assert all(len(span.SerializeToString()) <= MEGABYTE for span in decodes)
    assert attributes(first)["whence.decode.num_step_events"] == 1_000
    assert attributes(first)["whence.decode.num_step_spans"] == 0
    assert attributes(first)["whence.decode.num_parts"] == 2
    assert list_indices(spans) == [*range(1_000)]


def list_indices(spans: list[Span], sequence: int = 0) -> list[int]:
    """Return the indices of a sequence's events, in the order of its `decode` spans."""
    decodes = [
        span
        for span in named(spans, "decode")
        if attributes(span)["whence.sequence.index"] == sequence
    ]
    decodes.sort(key=lambda span: attributes(span)["whence.decode.part"])
    assert [attributes(span)["whence.decode.part"] for span in decodes] == [*range(len(decodes))]
    assert attributes(decodes[0])["whence.decode.num_parts"] == len(decodes)
    indices = []
    for span in decodes:
        found = [
            mapping(event.attributes)["gen_ai.iteration.total_tokens"] - 1
            for event in span.events
            if event.name == "gen_ai.token.generated"
        ]
        bounds = attributes(span)
        first, last = bounds["whence.decode.first_index"], bounds["whence.decode.last_index"]
        assert (found[0], found[-1]) == (first, last)
        indices += found
    return indices


@pytest.mark.parametrize("num_candidates", [2, 128])
async def test_all_steps_go_on_in_further_spans_of_a_megabyte_and_a_thousand_events(
    num_candidates: int,
) -> None:
    steps = [step(i, candidates=make_candidates(num_candidates)) for i in range(2_500)]
    spans = await spans_of(generated(steps), step_spans=None, **EVENTS)
    assert list_indices(spans) == [*range(2_500)]
    assert len(named(spans, "decode")) > 2
    assert_within_parents(spans)
    for span in named(spans, "decode"):
        assert len(span.SerializeToString()) <= MEGABYTE
        assert len(span.events) <= encoder.DEFAULT_STEP_SPANS
        in_order = [event.time_unix_nano for event in span.events]
        assert in_order == sorted(in_order)
        start, end = times(span)
        assert start <= in_order[0] <= in_order[-1] <= end


async def test_steps_beyond_the_bound_are_blocks_as_with_spans() -> None:
    steps = [step(i, s, draw=None) for i in range(40) for s in range(2)]
    journal = generated(steps, 2)
    as_events = await spans_of(journal, step_spans=15, **EVENTS)
    as_spans = await spans_of(journal, step_spans=15)
    assert named(as_events, "decode_block") == named(as_spans, "decode_block")
    assert list_indices(as_events, 0) == [*range(8)]
    assert list_indices(as_events, 1) == [*range(7)]
    assert max(len(span.events) for span in named(as_events, "decode")) == 14
    off = await spans_of(journal, step_spans=0, **EVENTS)
    assert not any(span.events for span in named(off, "decode"))
    assert named(off, "decode_block") == named(
        await spans_of(journal, step_spans=0), "decode_block"
    )


async def test_both_forms_are_the_spans_of_the_one_and_the_events_of_the_other() -> None:
    journal = generated([chosen(i) for i in range(20)])
    both = await spans_of(journal, step_form=StepForm.BOTH)
    as_spans = await spans_of(journal)
    (one,), (other,) = named(both, "decode"), named(await spans_of(journal, **EVENTS), "decode")
    assert named(both, "decode_step") == named(as_spans, "decode_step")
    assert one.events == other.events
    assert (attributes(one)["whence.decode.num_step_spans"], len(one.events)) == (20, 40)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=3),
    form=st.sampled_from([StepForm.EVENTS, StepForm.BOTH]),
    step_spans=st.sampled_from([None, 1_000, 7]),
    restarts=st.sets(st.integers(0, 95)),
    max_kept=st.sampled_from([64_000_000, 3_000]),
    lost=st.sets(st.integers(1, 90), max_size=3),
)
async def test_what_is_sent_twice_is_the_same_wherever_the_exporter_began_again(
    lengths, form, step_spans, restarts, max_kept, lost
):
    steps = [step(i, s) for i in range(30) for s, length in enumerate(lengths) if i < length]
    journal = generated(steps, len(lengths))
    for place in lost & {*range(1, len(steps) + 1)}:
        journal.entries[place] = journal.entries[place]._replace(payload=b"\xff")
    readable = [it for it in journal.entries if it.payload != b"\xff"]
    options = {"step_spans": step_spans, "step_form": form}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "DEFAULT_STEP_SPANS", 4)
        patch.setattr(decode_parts, "_MAX_KEPT_BYTES", max_kept)
        first = SpanEncoder(journal, **options)
        pieces = [piece for entry in readable for piece in await first.encode(entry)]
        again, second = [], SpanEncoder(journal, **options)
        for number, entry in enumerate(readable):
            if number in restarts:
                second = SpanEncoder(journal, **options)
            again += await second.encode(entry)
    assert again == pieces
    assert len({only_span(piece).span_id for piece in pieces}) == len(pieces)
    for piece in pieces:
        assert ScopeSpans.FromString(piece).SerializeToString() == piece


async def test_events_that_memory_has_no_room_for_are_made_again_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not at every step, which would read the journal as often as there are tokens."""
    steps = [step(i, s, candidates=make_candidates(8)) for i in range(200) for s in range(8)]
    journal = generated(steps, 8)
    expected = await encoded(journal, step_spans=None, **EVENTS)
    monkeypatch.setattr(decode_parts, "_MAX_KEPT_BYTES", 20_000)
    reads, read = [], journal.read

    async def count(*arguments: object) -> list[Entry]:
        reads.append(arguments)
        return await read(*arguments)

    monkeypatch.setattr(journal, "read", count)
    assert await encoded(journal, step_spans=None, **EVENTS) == expected
    assert len(reads) < 80
    made = SpanEncoder(journal, None, **EVENTS)
    most = 0
    for entry in journal.entries:
        await made.encode(entry)
        most = max(most, made._parts._num_bytes)
    assert 10_000 < most < 30_000


async def test_a_deleted_generation_leaves_no_events_in_memory() -> None:
    journal = generated([chosen(i) for i in range(4)])
    made = SpanEncoder(journal, **EVENTS)
    for entry in journal.entries[:4]:
        await made.encode(entry)
    assert made._parts._num_bytes > 0
    journal.delete("g")
    await made.encode(journal.entries[-1])
    assert made._parts._num_bytes == 0
    assert not made._parts._running


async def test_steps_that_come_again_are_counted_once_among_what_memory_holds() -> None:
    journal = generated([chosen(i) for i in range(4)])
    made = SpanEncoder(journal, **EVENTS)
    for entry in [*journal.entries[:4], *journal.entries[:2], *journal.entries]:
        await made.encode(entry)
    assert made._parts._num_bytes == 0
    assert not made._parts._running


# ---- arrays on the span of the generation ----


async def read_arrays(journal: MemoryJournal, num: int, **options: object) -> dict[str, object]:
    spans = await spans_of(journal, token_arrays=num, **options)
    (generation,) = named(spans, "text_completion demo")
    return {key: it for key, it in attributes(generation).items() if ".per_" in key}


async def test_the_arrays_have_an_element_for_each_of_the_first_tokens() -> None:
    steps = [chosen(i) for i in range(5)]
    journal = generated(steps)
    found = await read_arrays(journal, 3)
    starts = [0.013001, 0.014001, 0.018001]
    assert found.pop("gen_ai.response.per_token_time_to_schedule") == starts
    assert found.pop("gen_ai.response.per_token_time_to_generate") == [0.014, 0.018, 0.022]
    assert found.pop("gen_ai.iteration.per_token_batch_size") == [3, 3, 3]
    assert found.pop("gen_ai.iteration.per_token_cumulative_count") == [1, 2, 3]
    (decode,) = named(await spans_of(journal, **EVENTS), "decode")
    told = [mapping(event.attributes) for event in decode.events[1::2]][:3]
    assert {key: json.loads(text) for key, text in found.items()} == {
        f"gen_ai.response.candidate.per_position_{name}": [
            it[f"gen_ai.response.candidate.{name}"] for it in told
        ]
        for name in ("token_ids", "logprobs")
    }


async def test_the_arrays_have_texts_only_where_they_are_allowed() -> None:
    journal = generated([step(i, token_id=i) for i in range(2)])
    found = await read_arrays(journal, 9, **WITH_TEXT)
    texts = found["gen_ai.response.candidate.per_position_decoded_tokens"]
    assert json.loads(texts) == [[" t0"], [" t1"]]
    assert "decoded" not in str(await read_arrays(journal, 9))


async def test_there_are_no_arrays_by_default_and_none_of_several_sequences() -> None:
    assert await read_arrays(generated([chosen(0)]), 0) == {}
    assert await read_arrays(generated([chosen(0), chosen(0, 1)], 2), 9) == {}
    assert await read_arrays(generated([]), 9) == {}


async def test_the_arrays_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_arrays, "MAX_ARRAY_BYTES", 3_000)
    found = await read_arrays(generated([chosen(i) for i in range(50)]), 50)
    lengths = {len(json.loads(it) if isinstance(it, str) else it) for it in found.values()}
    assert len(lengths) == 1
    assert 0 < lengths.pop() < 50


async def test_the_arrays_leave_the_rest_of_the_trace_as_it_is() -> None:
    journal = generated([chosen(i) for i in range(5)])
    plain, with_arrays = await encoded(journal), await encoded(journal, token_arrays=5)
    assert [a == b for a, b in zip(plain, with_arrays, strict=True)].count(False) == 1
