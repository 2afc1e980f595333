"""The rest of the tree: phases before the first token, blocks, rounds of beams, decisions."""

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from span_reading import (
    assert_apart,
    assert_within_parents,
    attributes,
    encoded,
    mapping,
    named,
    only_span,
    spans_of,
    times,
)
from telemetry_journal import START_NS, MemoryJournal, call, finished, started, step, timestamp

from whence.v1 import generation_pb2, step_pb2
from whence_server.domain.entries import EntryKind
from whence_server.telemetry.spans import blocks
from whence_server.telemetry.spans.encoder import SpanEncoder
from whence_server.telemetry.spans.float32 import LOWEST_FLOAT32, shorten_all

MS = 1_000_000


def phased(num_steps: int = 3, **fields: object) -> MemoryJournal:
    """Queued for 2 ms; the prompt was read from then to 13 ms, where the first choice began."""
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", num_sequences=2))
    for index in range(num_steps):
        for sequence in range(2):
            journal.append("g", EntryKind.STEP, step(index, sequence))
    durations = {"queue_ns": 2 * MS, "prefill_ns": 11 * MS, "decode_ns": 4 * MS * num_steps}
    ending = finished(num_steps, 2, **{**durations, **fields})
    journal.append("g", EntryKind.FINISHED, ending)
    journal.append("g", EntryKind.CALL, call("g", num_steps))
    return journal


async def test_queue_and_prefill_come_before_the_tokens_and_touch_nothing():
    spans = await spans_of(phased(num_prefill_chunks=3, num_cached_prompt_tokens=0))
    (queue,), (prefill,) = named(spans, "queue"), named(spans, "prefill")
    assert times(queue) == (START_NS, START_NS + 2 * MS - 1_000)
    assert times(prefill) == (START_NS + 2 * MS, START_NS + 13 * MS - 1_000)
    assert attributes(queue) == {"whence.generation.id": "g"}
    assert attributes(prefill) == {
        "whence.generation.id": "g",
        "whence.prefill.num_tokens": 5,
        "whence.prefill.num_chunks": 3,
        "whence.prefill.num_cached_tokens": 0,
    }
    first, _ = named(spans, "decode")
    assert first.start_time_unix_nano == START_NS + 13 * MS
    assert_apart([queue, prefill, first])
    assert_within_parents(spans)


async def test_unknown_numbers_of_chunks_and_of_cached_tokens_are_absent():
    (prefill,) = named(await spans_of(phased()), "prefill")
    assert "whence.prefill.num_chunks" not in attributes(prefill)
    assert "whence.prefill.num_cached_tokens" not in attributes(prefill)


@pytest.mark.parametrize(
    ("queue_ns", "prefill_ns", "decode_ns", "expected"),
    [
        (0, 0, 0, {}),  # nothing is known of it: interrupted by a crash, before any token
        (5 * MS, 0, 0, {"queue": (0, 5 * MS)}),  # it ended in the queue
        (5 * MS, 3 * MS, 0, {"queue": (0, 5 * MS - 1_000), "prefill": (5 * MS, 8 * MS)}),
        (900, 3 * MS, 0, {"prefill": (900, 3 * MS + 900)}),  # no room for a gap
    ],
)
async def test_phases_of_a_generation_without_tokens_last_as_recorded(
    queue_ns, prefill_ns, decode_ns, expected
):
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    end = timestamp(START_NS + queue_ns + prefill_ns)
    ending = finished(
        0, 0, queue_ns=queue_ns, prefill_ns=prefill_ns, decode_ns=decode_ns, end_time=end
    )
    journal.append("g", EntryKind.FINISHED, ending)
    generation, *phases = await spans_of(journal)
    found = {span.name: tuple(t - START_NS for t in times(span)) for span in phases}
    assert found == expected
    assert generation.end_time_unix_nano == START_NS + queue_ns + prefill_ns


async def test_recorded_prefill_of_an_interrupted_generation_ends_with_its_first_token():
    """No queueing is recorded, and the recorded prefill ends with the first token."""
    journal = phased(queue_ns=0, prefill_ns=14 * MS)
    spans = await spans_of(journal)
    assert not named(spans, "queue")
    (prefill,) = named(spans, "prefill")
    assert times(prefill) == (START_NS, START_NS + 13 * MS - 1_000)


@given(*(st.integers(0, 2**40) for _ in range(5)))
async def test_phases_of_any_durations_stay_apart_and_within_their_parents(
    queue_ns, prefill_ns, decode_ns, elapsed_ns, select_ns
):
    timing = step_pb2.StepTiming(elapsed_ns=elapsed_ns, select_ns=select_ns)
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    journal.append("g", EntryKind.STEP, step(0, timing=timing))
    durations = {"queue_ns": queue_ns, "prefill_ns": prefill_ns, "decode_ns": decode_ns}
    journal.append("g", EntryKind.FINISHED, finished(1, **durations))
    journal.append("g", EntryKind.CALL, call("g", end_time=timestamp(START_NS + 2**43)))
    spans = await spans_of(journal)
    assert_within_parents(spans)
    assert_apart([s for s in spans if s.name in {"queue", "prefill", "decode"}])


def steady(lengths: list[int]) -> MemoryJournal:
    """Return a journal of sequences that take turns, with steps of 4 ms."""
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g", num_sequences=len(lengths)))
    for index in range(max(lengths)):
        for sequence, length in enumerate(lengths):
            if index < length:
                journal.append("g", EntryKind.STEP, step(index, sequence))
    durations = {"queue_ns": 2 * MS, "prefill_ns": 11 * MS, "decode_ns": MS}
    journal.append("g", EntryKind.FINISHED, finished(max(lengths), len(lengths), **durations))
    journal.append("g", EntryKind.CALL, call("g", max(lengths)))
    return journal


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    step_spans=st.none() | st.integers(0, 80),
    block_size=st.integers(1, 9),
    restarts=st.sets(st.integers(0, 180)),
)
async def test_blocks_cover_exactly_the_steps_without_a_span(
    lengths, step_spans, block_size, restarts
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "STEPS_PER_BLOCK", block_size)
        journal = steady(lengths)
        pieces = await encoded(journal, step_spans=step_spans)
        spans = [only_span(piece) for piece in pieces]
        # The same spans come of an exporter that was killed now and then.
        encoder, again = SpanEncoder(journal, step_spans), []
        for number, entry in enumerate(journal.entries):
            if number in restarts:
                encoder = SpanEncoder(journal, step_spans)
            again += await encoder.encode(entry)
        assert again == pieces
    assert_within_parents(spans)
    decodes = named(spans, "decode")
    assert_apart([*named(spans, "queue"), *named(spans, "prefill"), decodes[0]])
    for decode, length in zip(decodes, lengths, strict=True):
        children = [span for span in spans if span.parent_span_id == decode.span_id]
        assert_apart(children)
        indices = []
        for child in sorted(children, key=times):
            found = attributes(child)
            if child.name == "decode_step":
                indices.append(found["whence.step.index"])
                continue
            first, last = found["whence.block.first_index"], found["whence.block.last_index"]
            assert found["whence.block.num_steps"] == last - first + 1 <= block_size
            assert found["whence.block.token_ids"] == [1000 + i for i in range(first, last + 1)]
            indices += range(first, last + 1)
        assert indices == list(range(length))
        found = attributes(decode)
        assert found["whence.decode.num_step_spans"] == len(named(children, "decode_step"))
        assert found["whence.decode.num_block_spans"] == len(named(children, "decode_block"))


async def test_a_block_sums_its_steps_up():
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    draws = [step_pb2.Draw(noise=1, margin=m) for m in (0.5, 0.125, 0.125)]
    draws.append(step_pb2.Draw(noise=1))
    for index, draw in enumerate(draws):
        one = step(index, draw=draw, entropy=[1.0, 4.0, 4.0, 2.0][index], rank=index * 2)
        one.logprob = -1.0 - index
        journal.append("g", EntryKind.STEP, one)
    journal.append("g", EntryKind.FINISHED, finished(4))
    (block,) = named(await spans_of(journal, step_spans=0), "decode_block")
    assert attributes(block) == {
        "whence.generation.id": "g",
        "whence.sequence.index": 0,
        "whence.step.summary": "4 tokens, mean probability 14.3%, least 1.8%; least likely: "
        "#1003 1.8% at 0/3, #1002 5.0% at 0/2, #1001 13.5% at 0/1",
        "whence.block.first_index": 0,
        "whence.block.last_index": 3,
        "whence.block.num_steps": 4,
        "whence.block.token_ids": [1000, 1001, 1002, 1003],
        "whence.block.logprob": -10.0,
        "whence.block.sampling_logprob": -5.0,
        "whence.block.min_logprob": -4.0,
        "whence.block.max_rank": 6,
        "whence.block.mean_entropy": 2.75,
        "whence.block.max_entropy": 4.0,
        "whence.block.max_entropy_index": 1,
        "whence.block.min_draw_margin": 0.125,
        "whence.block.min_draw_margin_index": 1,
        "whence.block.mean_batch_size": 3.0,
        "whence.block.forward_ns": 12 * MS,
        "whence.block.select_ns": 4 * MS,
    }
    assert times(block) == (START_NS + 13 * MS + 1_000, START_NS + 26 * MS)


async def test_a_block_has_no_attribute_for_fields_that_no_step_has():
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    bare = step_pb2.Step(index=0, timing=step(0).timing)
    journal.append("g", EntryKind.STEP, bare)
    journal.append("g", EntryKind.FINISHED, finished(1))
    (block,) = named(await spans_of(journal, step_spans=0), "decode_block")
    assert attributes(block).keys() == {
        "whence.generation.id",
        "whence.sequence.index",
        "whence.step.summary",
        "whence.block.first_index",
        "whence.block.last_index",
        "whence.block.num_steps",
        "whence.block.mean_batch_size",
        "whence.block.forward_ns",
        "whence.block.select_ns",
    }


def test_a_very_long_generation_stays_within_a_few_hundred_blocks():
    assert blocks.count_blocks(100_000) < 200


async def test_a_deleted_generation_leaves_nothing_in_memory():
    journal = steady([20])
    encoder = SpanEncoder(journal, 5)
    for entry in journal.entries[:15]:
        await encoder.encode(entry)
    assert encoder._blocks._tallies
    journal.delete("g")
    await encoder.encode(journal.entries[-1])
    assert not encoder._blocks._tallies


CANDIDATES = step_pb2.Candidates(
    token_ids=[7, 300, 50_256],
    logprobs=[-0.25, -1.5, -8.0],
    sampling_logprobs=[-0.125, -2.0, -math.inf],
)
EFFECTS = step_pb2.ProcessorEffects(
    num_kept=[50_257, 2], removed_mass=[0.0, 0.25], token_logprobs=[-0.5, -0.125]
)


async def test_a_step_span_has_candidates_and_processors():
    journal = MemoryJournal()
    names = ["temperature", "top_p"]
    journal.append("g", EntryKind.STARTED, started("g", processor_names=names))
    decided = step(0, candidates=CANDIDATES, processors=EFFECTS)
    journal.append("g", EntryKind.STEP, decided)
    journal.append("g", EntryKind.STEP, step(1))
    journal.append("g", EntryKind.FINISHED, finished(2))
    first, second, generation, *_ = await spans_of(journal)
    found = attributes(first)
    assert found["whence.candidates.token_ids"] == [7, 300, 50_256]
    assert found["whence.candidates.logprobs"] == [-0.25, -1.5, -8.0]
    assert found["whence.candidates.sampling_logprobs"] == [-0.125, -2.0, LOWEST_FLOAT32]
    assert found["whence.processors.num_kept"] == [50_257, 2]
    assert found["whence.processors.removed_mass"] == [0.0, 0.25]
    assert found["whence.processors.token_logprobs"] == [-0.5, -0.125]
    assert found["whence.token.logprob"] == -1.5
    assert not [key for key in attributes(second) if "candidates" in key or "processors" in key]
    assert attributes(generation)["whence.processors.names"] == names


def test_a_removed_candidate_has_the_lowest_float32():
    assert struct.pack("<f", LOWEST_FLOAT32) == b"\xff\xff\x7f\xff"
    assert math.exp(LOWEST_FLOAT32) == 0.0


async def test_candidates_may_be_left_out():
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    journal.append("g", EntryKind.STEP, step(0, candidates=CANDIDATES, processors=EFFECTS))
    (one,) = await spans_of(journal, step_candidates=False)
    found = attributes(one)
    assert not [key for key in found if "candidates" in key]
    assert found["whence.processors.num_kept"] == [50_257, 2]


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def decisions(draw):
    num_candidates, num_processors = draw(st.integers(0, 12)), draw(st.integers(0, 4))

    def numbers(count: int, of=FLOATS) -> list[float]:
        return draw(st.lists(of, min_size=count, max_size=count))

    ids = st.integers(0, 2**32 - 1)
    return (
        step_pb2.Candidates(
            token_ids=numbers(num_candidates, ids),
            logprobs=numbers(num_candidates),
            sampling_logprobs=numbers(num_candidates, FLOATS | st.just(-math.inf)),
        ),
        step_pb2.ProcessorEffects(
            num_kept=numbers(num_processors, ids),
            removed_mass=numbers(num_processors),
            token_logprobs=numbers(num_processors),
        ),
    )


@settings(max_examples=50)
@given(st.lists(decisions(), min_size=1, max_size=5))
async def test_arrays_of_any_length_come_back(all_decisions):
    """Also what is told without an array stays itself, whatever stands around it."""
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    for index, (candidates, processors) in enumerate(all_decisions):
        one = step(index, candidates=candidates, processors=processors)
        journal.append("g", EntryKind.STEP, one)
    plain = attributes((await spans_of_plain())[0])
    for span, (candidates, processors) in zip(await spans_of(journal), all_decisions, strict=True):
        found = attributes(span)
        expected = {
            "whence.candidates.token_ids": list(candidates.token_ids),
            "whence.candidates.logprobs": shorten_all(candidates.logprobs),
            "whence.candidates.sampling_logprobs": shorten_all(candidates.sampling_logprobs),
            "whence.processors.num_kept": list(processors.num_kept),
            "whence.processors.removed_mass": shorten_all(processors.removed_mass),
            "whence.processors.token_logprobs": shorten_all(processors.token_logprobs),
        }
        arrays = {key: value for key, value in found.items() if isinstance(value, list)}
        assert arrays == {key: value for key, value in expected.items() if value}
        assert found.keys() - arrays.keys() == plain.keys()


async def spans_of_plain():
    journal = MemoryJournal()
    journal.append("g", EntryKind.STARTED, started("g"))
    journal.append("g", EntryKind.STEP, step(0))
    return await spans_of(journal)


def beam_round(index: int, **fields: object) -> generation_pb2.BeamRound:
    made = generation_pb2.BeamContinuation
    return generation_pb2.BeamRound(
        index=index,
        continuations=[
            made(parent=0, token_id=1, logprob=-1, score=-2.5, kept=True),
            made(parent=0, token_id=2, logprob=-1, score=-3.5, kept=True),
            made(parent=1, token_id=3, logprob=-1, score=-2.0, finished=True),
            made(parent=2, token_id=4, logprob=-1, score=-9.0),
        ],
        **fields,
    )


def beams(num_rounds: int, *, timed: bool = True) -> MemoryJournal:
    """Return a journal of beam rounds, followed by the steps of two winners."""
    journal = MemoryJournal()
    decoding = generation_pb2.Decoding(
        beam_search=generation_pb2.BeamSearch(num_beams=3), num_return_sequences=2
    )
    journal.append("g", EntryKind.STARTED, started("g", effective_decoding=decoding))
    for index in range(num_rounds):
        timing = {"timing": step(index).timing} if timed else {}
        journal.append("g", EntryKind.BEAM_ROUND, beam_round(index, **timing))
    for sequence, length in enumerate([num_rounds, num_rounds - 2]):
        for index in range(length):
            journal.append("g", EntryKind.STEP, step(index, sequence))
    durations = {"queue_ns": 2 * MS, "prefill_ns": 11 * MS, "decode_ns": MS}
    journal.append("g", EntryKind.FINISHED, finished(num_rounds, 2, **durations))
    journal.append("g", EntryKind.CALL, call("g", num_rounds))
    return journal


async def test_rounds_of_beam_search_are_spans_beside_the_winners():
    spans = await spans_of(beams(40))
    assert_within_parents(spans)
    rounds, (first, second) = named(spans, "beam_round"), named(spans, "decode")
    assert_apart([*named(spans, "queue"), *named(spans, "prefill"), *rounds])
    assert len(rounds) == 40
    assert attributes(rounds[3]) == {
        "whence.generation.id": "g",
        "whence.step.summary": attributes(rounds[3])["whence.step.summary"],
        "whence.beam_round.index": 3,
        "whence.beam_round.num_continuations": 4,
        "whence.beam_round.num_parents": 2,
        "whence.beam_round.num_kept": 2,
        "whence.beam_round.num_finished": 1,
        "whence.beam_round.best_score": -2.5,
        "whence.step.batch_size": 3,
        "whence.step.context_length": 23,
        "whence.step.forward_ns": 3 * MS,
        "whence.step.select_ns": MS,
    }
    assert attributes(first)["whence.decode.num_steps"] == 40
    assert attributes(second)["whence.decode.num_steps"] == 38
    assert first.end_time_unix_nano == START_NS + 10 * MS + 40 * 4 * MS
    (generation,) = named(spans, "text_completion demo")
    found = attributes(generation)
    assert found["whence.decoding.strategy"] == "beam_search"
    assert "gen_ai.response.time_to_first_chunk" not in found


async def test_rounds_are_bounded_as_steps_are():
    assert len(named(await spans_of(beams(40), step_spans=25), "beam_round")) == 25


async def test_a_beam_round_without_a_time_has_no_span():
    spans = await spans_of(beams(5, timed=False))
    assert not named(spans, "beam_round")
    assert len(named(spans, "decode")) == 2


async def test_span_bytes_equal_protobufs_own_serialisation():
    """Parsed and written again by protobuf, a span says the same, and no field is unknown."""
    journal = phased(60)
    journal.append("g", EntryKind.STEP, step(60, candidates=CANDIDATES, processors=EFFECTS))
    for piece in await encoded(journal, step_spans=20):
        span = only_span(piece)
        again = type(span).FromString(span.SerializeToString())
        assert again == span
        assert len(again.SerializeToString()) == len(span.SerializeToString())
        assert len(piece) - len(span.SerializeToString()) in {2, 3}
        assert mapping(span.attributes)
