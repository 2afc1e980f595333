"""Verification by replay in this process: honest generations pass, false ones are named."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import loaded_model, prompt_of
from replaying import (
    claim,
    generate,
    judge,
    make_question,
    make_verifier,
    save_rounded,
    strip_numbers,
    swap_token,
)

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.verifier import Verifier
from whence_server.domain.decoding import Decoding, EarlyStopping, Strategy
from whence_server.domain.steps import Step
from whence_server.engines.transformers.loading import LoadedModel

NUM_TOKENS = 40
GOOD = {pb.VERDICT_VERIFIED, pb.VERDICT_VERIFIED_WITHIN_MARGIN}
SAMPLE = Decoding(Strategy.SAMPLE, NUM_TOKENS, temperature=0.8, top_p=0.95, seed=3, ignore_eos=True)
STRATEGIES = {
    "sample": SAMPLE,
    "greedy": Decoding(Strategy.GREEDY, NUM_TOKENS, ignore_eos=True),
    "top-k and penalty": claim(SAMPLE, top_p=1.0, top_k=20, repetition_penalty=1.2),
    "typical": claim(SAMPLE, top_p=1.0, typical_p=0.9),
    "min-p and biases": claim(
        SAMPLE, top_p=1.0, min_p=0.02, logit_bias=((5, 2.0), (7, -3.0)), no_repeat_ngram_size=3
    ),
    "three samples": claim(SAMPLE, num_return_sequences=3),
    "beams": Decoding(
        Strategy.BEAM_SEARCH,
        NUM_TOKENS,
        num_beams=3,
        num_return_sequences=2,
        early_stopping=EarlyStopping.HEURISTIC,
    ),
    "forced": Decoding(
        Strategy.FORCED, NUM_TOKENS, forced_token_ids=tuple(prompt_of(NUM_TOKENS, 9))
    ),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time to a second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def verifiers(models: Callable[[str], LoadedModel]) -> Callable[[str], Verifier]:
    made: dict[str, Verifier] = {}

    def get(architecture: str) -> Verifier:
        if architecture not in made:
            made[architecture], _ = make_verifier(models(architecture))
        return made[architecture]

    return get


def verify(
    verifier: Verifier,
    loaded: LoadedModel,
    prompt: Sequence[int],
    decoding: Decoding,
    steps: Any,
    rounds: Any = (),
) -> tuple[pb.VerificationResult, list[Any]]:
    made = claim(decoding, eos_token_ids=loaded.info.defaults.eos_token_ids)
    return judge(verifier, make_question(loaded.info, prompt, made, steps, rounds))


@pytest.mark.parametrize("architecture", ["gpt2", "mistral", "gemma2", "mamba2"])
def test_honest_generations_of_every_strategy_are_verified_in_any_batch(
    architecture: str,
    models: Callable[[str], LoadedModel],
    verifiers: Callable[[str], Verifier],
) -> None:
    loaded, verifier = models(architecture), verifiers(architecture)
    requests = [
        (prompt_of(10 + 5 * place, place), decoding)
        for place, decoding in enumerate(STRATEGIES.values())
    ]
    for chunk in (16, 512):
        finished = generate(loaded, requests, chunk=chunk)
        for name, (prompt, decoding), (steps, rounds) in zip(
            STRATEGIES, requests, finished, strict=True
        ):
            result, events = verify(verifier, loaded, prompt, decoding, steps, rounds)
            assert result.verdict in GOOD, (name, chunk, result, events)
            assert result.num_steps == len(rounds) + len(steps)
            assert result.num_divergent == 0


@pytest.fixture(scope="module")
def honest(models: Callable[[str], LoadedModel]) -> tuple[list[int], list[Step]]:
    prompt = prompt_of(20, 1)
    [(steps, _)] = generate(models("gpt2"), [(prompt, SAMPLE)])
    return prompt, steps


@pytest.mark.parametrize("numbers", [True, False], ids=["as made", "numbers forged"])
@pytest.mark.parametrize(
    "changes",
    [{"seed": 4}, {"temperature": 1.6}, {"top_k": 3}],
    ids=["another seed", "another temperature", "another top-k"],
)
def test_settings_that_were_not_those_of_the_generation_are_found(
    changes: dict[str, Any],
    numbers: bool,
    honest: tuple[list[int], list[Step]],
    models: Callable[[str], LoadedModel],
    verifiers: Callable[[str], Verifier],
) -> None:
    prompt, steps = honest
    claimed = steps if numbers else strip_numbers(steps)
    result, _ = verify(verifiers("gpt2"), models("gpt2"), prompt, claim(SAMPLE, **changes), claimed)
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert result.num_divergent > 0
    assert result.first_divergent.differences


@pytest.mark.parametrize("place", [0, 17, NUM_TOKENS - 1])
@pytest.mark.parametrize("numbers", [True, False], ids=["as made", "numbers forged"])
def test_a_swapped_token_is_named(
    place: int,
    numbers: bool,
    honest: tuple[list[int], list[Step]],
    models: Callable[[str], LoadedModel],
    verifiers: Callable[[str], Verifier],
) -> None:
    prompt, steps = honest
    swapped = swap_token(steps, place, 400)
    claimed = swapped if numbers else strip_numbers(swapped)
    result, _ = verify(verifiers("gpt2"), models("gpt2"), prompt, SAMPLE, claimed)
    assert result.verdict == pb.VERDICT_DIVERGENT
    first = result.first_divergent
    assert (first.sequence_index, first.index) == (0, place)
    assert pb.STEP_PART_TOKEN in {difference.part for difference in first.differences}
    assert first.token_id == swapped[place].decision.token_id
    assert first.replayed_token_id == steps[place].decision.token_id
    if numbers:
        parts = {difference.part for difference in first.differences}
        assert {pb.STEP_PART_LOGPROB, pb.STEP_PART_DRAW} <= parts


def test_a_hidden_prompt_is_found(
    models: Callable[[str], LoadedModel], verifiers: Callable[[str], Verifier]
) -> None:
    prompt = prompt_of(20, 1)
    [(steps, _)] = generate(models("gpt2"), [(prompt_of(8, 5) + prompt, SAMPLE)])
    result, _ = verify(verifiers("gpt2"), models("gpt2"), prompt, SAMPLE, steps)
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert result.first_divergent.index == 0


@pytest.mark.parametrize("how", ["bfloat16", "int8", "4 bits"])
def test_rounded_weights_are_found_by_their_logprobs(
    how: str,
    tmp_path: Path,
    tiny_model: Callable[..., Path],
    models: Callable[[str], LoadedModel],
    verifiers: Callable[[str], Verifier],
) -> None:
    directory = save_rounded(tiny_model("gpt2"), tmp_path / "rounded", how)
    prompt = prompt_of(20, 1)
    [(steps, _)] = generate(loaded_model(directory, findings_cache=""), [(prompt, SAMPLE)])
    result, _ = verify(verifiers("gpt2"), models("gpt2"), prompt, SAMPLE, steps)
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert result.first_divergent.differences[0].part == pb.STEP_PART_LOGPROB


def test_a_beam_search_of_other_settings_is_found_in_its_round(
    models: Callable[[str], LoadedModel], verifiers: Callable[[str], Verifier]
) -> None:
    decoding, prompt = STRATEGIES["beams"], prompt_of(20, 2)
    [(steps, rounds)] = generate(models("gpt2"), [(prompt, decoding)])
    changed = rounds.copy()
    first = changed[5].continuations[0]
    changed[5] = changed[5]._replace(
        continuations=[first._replace(logprob=first.logprob - 0.5), *changed[5].continuations[1:]]
    )
    result, _ = verify(verifiers("gpt2"), models("gpt2"), prompt, decoding, steps, changed)
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert result.first_divergent_round.index == 5
    others = [step._replace(sequence_index=1 - step.sequence_index) for step in steps]
    others.sort(key=lambda step: step.sequence_index)
    result, _ = verify(verifiers("gpt2"), models("gpt2"), prompt, decoding, others, rounds)
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert "other sequences" in result.message


def test_other_weights_are_not_verified(
    honest: tuple[list[int], list[Step]],
    models: Callable[[str], LoadedModel],
    verifiers: Callable[[str], Verifier],
) -> None:
    prompt, steps = honest
    question = make_question(models("gpt2").info, prompt, SAMPLE, steps)
    result, _ = judge(verifiers("mistral"), question)
    assert result.verdict == pb.VERDICT_NOT_VERIFIABLE
    assert result.reason == "OTHER_WEIGHTS"


def test_the_noise_of_float32_is_far_below_a_change_of_settings(
    models: Callable[[str], LoadedModel],
) -> None:
    _, noise = make_verifier(models("gpt2"))
    assert 0 <= noise.largest < 1e-3
    assert noise.largest < noise.margin < 0.01
    assert noise.num_logprobs > 1_000
    assert math.isfinite(noise.root_mean_square_limit)


def test_of_another_programs_draws_the_logprobs_alone_are_compared(
    honest: tuple[list[int], list[Step]],
    models: Callable[[str], LoadedModel],
    verifiers: Callable[[str], Verifier],
) -> None:
    prompt, steps = honest
    other_seed = claim(SAMPLE, seed=99)
    question = make_question(models("gpt2").info, prompt, other_seed, steps)
    result, _ = judge(verifiers("gpt2"), question._replace(logprobs_only=True))
    assert result.verdict == pb.VERDICT_VERIFIED
    assert result.basis == pb.VERIFICATION_BASIS_LOGPROBS
    moved = steps.copy()
    decision = moved[3].decision
    moved[3] = moved[3]._replace(
        decision=decision._replace(logprob=(decision.logprob or 0.0) + 0.2)
    )
    question = make_question(models("gpt2").info, prompt, other_seed, moved)
    result, _ = judge(verifiers("gpt2"), question._replace(logprobs_only=True))
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert result.first_divergent.index == 3


@pytest.mark.parametrize(
    "change",
    [
        lambda steps: steps[:5] + steps[6:],
        lambda steps: [*steps[:5], steps[4], *steps[6:]],
        lambda steps: [
            *steps[:5],
            steps[5]._replace(decision=steps[5].decision._replace(token_id=10**6)),
            *steps[6:],
        ],
    ],
    ids=["a step is missing", "a step is repeated", "a token is none of the model's"],
)
def test_steps_that_cannot_be_replayed_are_divergent(
    change: Callable[[list[Step]], list[Step]],
    honest: tuple[list[int], list[Step]],
    models: Callable[[str], LoadedModel],
    verifiers: Callable[[str], Verifier],
) -> None:
    prompt, steps = honest
    result, _ = verify(verifiers("gpt2"), models("gpt2"), prompt, SAMPLE, change(steps))
    assert result.verdict == pb.VERDICT_DIVERGENT
    assert result.num_steps == 0
    assert result.message
