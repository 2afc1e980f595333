"""Given tokens before the first choice: the rest is as if the engine had chosen them itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from engine_harness import Harness, greedy, prompt_of, reference_greedy

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions

if TYPE_CHECKING:
    from whence_server.engines.transformers.loading import LoadedModel

ARCHITECTURES = ["gpt2", "llama", "gemma2", "mamba"]
NUM_TOKENS, STEP = 20, 7
SAMPLED = Decoding(Strategy.SAMPLE, NUM_TOKENS, seed=2**40 + 9, temperature=0.9, top_p=0.95)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_choices_after_given_tokens_are_equal_to_the_bit(
    architecture: str, models: "Callable[[str], LoadedModel]"
) -> None:
    loaded, prompt = models(architecture), prompt_of(11, 3)
    harness = Harness(loaded)
    harness.admit("parent", prompt, SAMPLED)
    harness.run()
    ids = harness.ids("parent")
    # Each alone, as the parent was.
    harness.admit("branch", prompt, replace(SAMPLED, forced_token_ids=tuple(ids[:STEP])))
    harness.run()
    theirs, ours = ([it.decision for it in harness.steps[name, 0]] for name in ("parent", "branch"))
    assert ours[STEP:] == theirs[STEP:]
    for given, chosen in zip(ours[:STEP], theirs[:STEP], strict=True):
        assert (given.token_id, given.logprob) == (chosen.token_id, chosen.logprob)
        assert (given.rank, given.entropy) == (chosen.rank, chosen.entropy)
        assert given.sampling_logprob is given.effects is given.draw is None
        assert given.candidates is not None
        assert chosen.candidates is not None
        assert given.candidates.token_ids == chosen.candidates.token_ids
        assert given.candidates.sampling_logprobs == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_given_tokens_beside_others_leave_ids_and_noise_as_they_were(
    architecture: str, models: "Callable[[str], LoadedModel]"
) -> None:
    harness, prompt = Harness(models(architecture)), prompt_of(11, 3)
    several = replace(SAMPLED, num_return_sequences=3)
    harness.admit("parent", prompt, several)
    harness.admit("other", prompt_of(30, 5), replace(SAMPLED, seed=1))
    harness.run()
    third = tuple(harness.ids("parent", 2))
    one = replace(SAMPLED, first_draw_sequence=2)
    for step in (0, 1, 13):
        harness.admit(f"{step}", prompt, replace(one, forced_token_ids=third[:step]))
    two = replace(
        SAMPLED,
        first_draw_sequence=1,
        num_return_sequences=2,
        forced_token_ids=tuple(harness.ids("parent", 1)[:4]),
    )
    harness.admit("two", prompt, two)
    harness.run()
    noises = [it.decision.draw.noise for it in harness.steps["parent", 2] if it.decision.draw]
    for step in (0, 1, 13):
        assert tuple(harness.ids(f"{step}")) == third
        own = [it.decision.draw.noise for it in harness.steps[f"{step}", 0] if it.decision.draw]
        assert own == noises[step:]
    assert harness.ids("two") == harness.ids("parent", 1)
    assert harness.ids("two", 1)[:4] == harness.ids("two")[:4]
    assert not harness.failed


def test_processors_take_given_tokens_for_generated_ones_as_generate_does(
    models: "Callable[[str], LoadedModel]",
) -> None:
    loaded, prompt, given = models("gpt2"), prompt_of(9, 4), prompt_of(6, 8)
    options = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    harness = Harness(loaded)
    decoding = greedy(NUM_TOKENS, ignore_eos=True, forced_token_ids=tuple(given), **options)
    harness.admit("branch", prompt, decoding)
    harness.run()
    expected = reference_greedy(
        loaded.model,
        [*prompt, *given],
        max_new_tokens=NUM_TOKENS - len(given),
        eos_token_id=None,
        **options,
    )
    assert harness.ids("branch") == [*given, *expected]


def test_given_token_that_ends_a_sequence_ends_it(models: "Callable[[str], LoadedModel]") -> None:
    harness = Harness(models("gpt2"))
    decoding = greedy(NUM_TOKENS, stop_token_ids=(17,), forced_token_ids=(5, 17))
    harness.admit("branch", prompt_of(5, 1), decoding)
    harness.run()
    assert harness.ids("branch") == [5, 17]


def test_given_steps_have_internals(models: "Callable[[str], LoadedModel]") -> None:
    harness = Harness(models("gpt2"))
    trace = TraceOptions(TraceDetail.INTERNALS)
    harness.admit("branch", prompt_of(5, 1), greedy(6, forced_token_ids=(5, 6)), trace)
    harness.run()
    internals = [it.decision.internals for it in harness.steps["branch", 0]]
    assert all(it is not None and it.layer_shares for it in internals)
