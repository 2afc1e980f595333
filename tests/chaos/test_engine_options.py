"""The engine with settings that requests cannot have: failures end only their generation."""

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import BeamHarness, beams, greedy, loaded_model, prompt_of, sampled
from extreme_requests import BEYOND, FLOATS, SAMPLING

from whence_server.domain.decoding import Decoding, Strategy, TraceDetail, TraceOptions
from whence_server.engines.transformers.loading import LoadedModel

NUM_HOSTILE = 10
"""Number of generations in a round."""
NUM_TOKENS = 30


@pytest.fixture(scope="module")
def gpt2(tiny_model: Callable[..., Path]) -> LoadedModel:
    return loaded_model(tiny_model("gpt2"))


def admit_witnesses(harness: BeamHarness) -> None:
    penalised = greedy(NUM_TOKENS, ignore_eos=True, repetition_penalty=1.3, no_repeat_ngram_size=2)
    inside = TraceOptions(TraceDetail.INTERNALS, num_candidates=3)
    harness.admit("greedy", prompt_of(10, 1), greedy(NUM_TOKENS, ignore_eos=True))
    harness.admit("penalised", prompt_of(11, 2), penalised)
    harness.admit("drawn", prompt_of(12, 3), sampled(NUM_TOKENS, ignore_eos=True, min_p=0.01))
    harness.admit("inside", prompt_of(13, 4), sampled(NUM_TOKENS, ignore_eos=True, seed=3), inside)
    harness.admit("beams", prompt_of(14, 5), beams(NUM_TOKENS, 3, ignore_eos=True))


def witnessed(harness: BeamHarness) -> dict[str, list[int]]:
    single = {name: harness.ids(name) for name in ("greedy", "penalised", "drawn", "inside")}
    return single | {"beams": harness.winners("beams")[0]}


def hostile(choose: random.Random) -> Decoding:
    """Return settings of any size, some of which transformers itself refuses."""

    finite = choose.random() < 0.8  # what is not ends a generation at its first step

    def number(name: str) -> float:
        beyond = [value for value in BEYOND if not finite or math.isfinite(value)]
        return choose.choice(beyond if choose.random() < 0.4 else FLOATS[name])

    settings: dict[str, object] = {
        name: number(name) for name in (*SAMPLING, "repetition_penalty") if choose.random() < 0.5
    }
    strategy = choose.choice((Strategy.GREEDY, Strategy.SAMPLE, Strategy.BEAM_SEARCH))
    if strategy is Strategy.BEAM_SEARCH:
        settings |= {"num_beams": 2, "length_penalty": number("length_penalty")}
    return Decoding(
        strategy,
        choose.choice((1, 20, 200)),
        ignore_eos=True,
        top_k=choose.choice((0, 1, 2**32 - 1)),
        no_repeat_ngram_size=choose.choice((0, 1, 1, 2, 2**32 - 1)),
        logit_bias=tuple(
            (token_id, number("logit_bias"))
            for token_id in choose.sample(range(416), choose.choice((0, 1, 2, 10, 40)))
        ),
        **settings,  # type: ignore[arg-type]
    )


@pytest.mark.timeout(0)  # as many rounds as are asked for
def test_hostile_settings_fail_only_their_own_generation(gpt2: LoadedModel, rounds: range) -> None:
    undisturbed = BeamHarness(gpt2)
    admit_witnesses(undisturbed)
    undisturbed.run()
    expected = witnessed(undisturbed)
    for seed in rounds:
        choose = random.Random(seed)
        harness = BeamHarness(gpt2, batch=64)
        admit_witnesses(harness)
        for number in range(NUM_HOSTILE):
            trace = TraceOptions(
                choose.choice(list(TraceDetail)), choose.choice((0, 3, 128)), choose.random() < 0.3
            )
            prompt = prompt_of(choose.randint(1, 40), number)
            harness.admit(f"hostile {number}", prompt, hostile(choose), trace)
            harness.loop.run_turn()
        harness.run(max_turns=5000)
        assert not expected.keys() & harness.failed.keys(), f"CHAOS_SEED={seed}: {harness.failed}"
        assert witnessed(harness) == expected, f"CHAOS_SEED={seed}"
