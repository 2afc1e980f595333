"""Verification of a real model's generations: the short form of `make bench-verify`."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from engine_harness import engine_options
from replaying import (
    ROUNDINGS,
    claim,
    generate,
    judge,
    make_question,
    make_verifier,
    strip_numbers,
    swap_token,
)

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.noise import Noise
from whence_server.analysis.replay.verifier import Verifier
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.steps import Step
from whence_server.engines.transformers.loading import LoadedModel, load
from whence_server.text.tokenizer import TextTokenizer

SAMPLE = Decoding(Strategy.SAMPLE, 24, temperature=0.8, top_p=0.95, seed=11, ignore_eos=True)
GREEDY = Decoding(Strategy.GREEDY, 24, ignore_eos=True)
NOISE = Noise(largest=1e-4, root_mean_square=2e-5, num_logprobs=1, measured_at_ns=0)
"""Three times what is measured in float32, which takes half a minute."""
PROMPT = "The three largest rivers of Europe are"


class Recorded(NamedTuple):
    """The real model, its verifier, and a sampled and a greedy generation that it made."""

    loaded: LoadedModel
    verifier: Verifier
    prompt: list[int]
    sampled: list[Step]
    greedy: list[Step]

    def judge(self, decoding: Decoding, steps: list[Step]) -> pb.VerificationResult:
        question = make_question(self.loaded.info, self.prompt, decoding, steps)
        return judge(self.verifier, question)[0]


@pytest.fixture(scope="module")
def recorded(real_model: Path) -> Iterator[Recorded]:
    before = torch.get_num_threads()
    loaded = load(engine_options(real_model))
    verifier, _ = make_verifier(loaded, NOISE)
    tokenizer = TextTokenizer(loaded.info.text, loaded.info.vocabulary_size)
    prompt = tokenizer.encode(PROMPT)
    (sampled, _), (greedy, _) = generate(loaded, [(prompt, SAMPLE), (prompt, GREEDY)])
    yield Recorded(loaded, verifier, list(prompt), sampled, greedy)
    torch.set_num_threads(before)


def test_honest_generations_of_the_real_model_are_verified(recorded: Recorded) -> None:
    for decoding, steps in ((SAMPLE, recorded.sampled), (GREEDY, recorded.greedy)):
        result = recorded.judge(decoding, steps)
        assert (result.verdict, result.num_within_margin) == (pb.VERDICT_VERIFIED, 0), result
        assert result.num_logprobs >= len(steps)


def test_false_claims_about_the_real_model_are_found(recorded: Recorded) -> None:
    size = recorded.loaded.info.vocabulary_size
    for name, decoding, steps in (
        ("another seed", claim(SAMPLE, seed=12), recorded.sampled),
        (
            "another seed, by the tokens alone",
            claim(SAMPLE, seed=12),
            strip_numbers(recorded.sampled),
        ),
        ("temperature", claim(SAMPLE, temperature=0.9), recorded.sampled),
        ("top-p", claim(SAMPLE, top_p=0.9), recorded.sampled),
        ("one token swapped", SAMPLE, swap_token(recorded.sampled, 9, size)),
        ("its last token swapped", GREEDY, strip_numbers(swap_token(recorded.greedy, 23, size))),
    ):
        result = recorded.judge(decoding, steps)
        assert result.verdict == pb.VERDICT_DIVERGENT, (name, result)
    swapped = swap_token(recorded.sampled, 9, size)
    assert recorded.judge(SAMPLE, swapped).first_divergent.index == 9


@torch.no_grad()
def test_rounded_weights_of_the_real_model_are_found(recorded: Recorded) -> None:
    """The record claims the weights, and comes from others: rounded to 8 bits in one layer."""
    weight = recorded.loaded.model.model.layers[3].mlp.down_proj.weight
    before = weight.clone()
    try:
        weight.copy_(ROUNDINGS["int8"](weight))
        ((steps, _),) = generate(recorded.loaded, [(recorded.prompt, SAMPLE)])
    finally:
        weight.copy_(before)
    result = recorded.judge(SAMPLE, steps)
    assert result.verdict == pb.VERDICT_DIVERGENT, result
    assert result.first_divergent.index == 0
