"""Slices of a finished beam search: complete, in order, and none for stopped generations."""

from whence_server.domain.decoding import FinishReason
from whence_server.domain.engine import BeamSearchDone, BeamSequence, BeamStep, Cost
from whence_server.domain.steps import Candidates, Decision, RequestedLogprobs
from whence_server.engines.transformers.outbox import CANDIDATES_IN_A_SLICE, Outbox

COST = Cost(0, 0, 0, 1)


def search(
    name: str, num_sequences: int, num_steps: int, num_candidates: int, num_requested: int = 0
) -> BeamSearchDone:
    ids = list(range(num_candidates))
    decision = Decision(7, -1.0, candidates=Candidates(ids, [-1.0] * num_candidates, []))
    if num_requested:
        requested = RequestedLogprobs([-1.0] * num_requested, [])
        decision = decision._replace(requested_logprobs=requested)
    steps = [BeamStep(decision, i, COST) for i in range(num_steps)]
    return BeamSearchDone(
        name, [BeamSequence(-float(i), FinishReason.LENGTH, steps) for i in range(num_sequences)]
    )


def test_slices_make_up_the_search_and_are_bounded() -> None:
    for num_candidates, num_requested in ((0, 0), (8, 0), (128, 0), (0, 128), (8, 56)):
        outbox = Outbox()
        done = search("a", 3, 500, num_candidates, num_requested)
        outbox.put(done)
        told: dict[int, list[BeamStep]] = {0: [], 1: [], 2: []}
        while not (turn := outbox.take_next(COST)).beam_searches:
            (won,) = turn.beam_steps
            assert len(won.steps) * max(num_candidates + num_requested, 8) <= CANDIDATES_IN_A_SLICE
            assert won.first_index == len(told[won.sequence_index])
            told[won.sequence_index] += won.steps
            assert won.score == done.sequences[won.sequence_index].score
            is_last = len(told[won.sequence_index]) == 500
            assert won.finish is (FinishReason.LENGTH if is_last else None)
        assert turn.beam_searches == [BeamSearchDone("a", [])]
        assert [told[i] for i in range(3)] == [sequence.steps for sequence in done.sequences]
        assert outbox.is_empty


def test_a_short_search_does_not_wait_for_a_long_one() -> None:
    outbox = Outbox()
    outbox.put(search("long", 64, 500, 64))
    outbox.put(search("short", 2, 3, 8))
    turns = [outbox.take_next(COST) for _ in range(10)]
    assert BeamSearchDone("short", []) in [done for turn in turns for done in turn.beam_searches]


def test_a_dropped_generation_is_not_sent() -> None:
    outbox = Outbox()
    outbox.put(search("a", 2, 50, 8))
    outbox.put(search("b", 1, 1, 8))
    outbox.take_next(COST)
    outbox.drop("a")
    assert outbox.take_next(COST).beam_steps[0].generation_id == "b"
    assert outbox.take_next(COST).beam_searches
    assert outbox.is_empty
