"""The distribution that an upstream draws from, computed from its table: against transformers."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from whence_server.domain.decoding import Decoding, Strategy
from whence_server.engines.upstream.second import SecondComputer, find_computer

ORDER = ("temperature", "top_k", "top_p", "min_p")
VLLM = ("temperature", "min_p", "top_k", "top_p")
VOCABULARY = 40


def sample(**settings: float) -> Decoding:
    return Decoding(Strategy.SAMPLE, 8, **settings)


def process(logits: torch.Tensor, decoding: Decoding, order: tuple[str, ...]) -> torch.Tensor:
    """Return the logprobs after transformers' own processors."""
    processors = {
        "temperature": lambda: TemperatureLogitsWarper(decoding.temperature),
        "top_k": lambda: TopKLogitsWarper(decoding.top_k) if decoding.top_k else None,
        "top_p": lambda: TopPLogitsWarper(decoding.top_p) if decoding.top_p < 1 else None,
        "min_p": lambda: MinPLogitsWarper(decoding.min_p) if decoding.min_p else None,
    }
    scores = logits[None]
    for name in order:
        processor = processors[name]()
        if processor is not None:
            scores = processor(torch.zeros(1, 1, dtype=torch.long), scores)
    return torch.log_softmax(scores, -1)[0]


@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.25, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 1, 3, 8]),
    top_p=st.sampled_from([0.3, 0.8, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.3]),
    num_candidates=st.integers(1, VOCABULARY),
    order=st.sampled_from([ORDER, VLLM]),
)
def test_what_is_computed_is_what_transformers_computes_from_all_logits(
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    num_candidates: int,
    order: tuple[str, ...],
) -> None:
    decoding = sample(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    computer = find_computer(decoding, order, has_passed_on=False)
    assume(computer is not None)
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(VOCABULARY, generator=generator, dtype=torch.float64)
    raw, ids = torch.log_softmax(logits, -1).topk(num_candidates)
    expected = process(logits, decoding, order)
    computed = computer.compute(raw.tolist())
    if computed is None:
        # A table with one token more than top-k keeps is always enough.
        assert not 0 < top_k < num_candidates
        return
    assert computed == pytest.approx(expected[ids].tolist(), abs=1e-9)
    # No token beyond the table is left, unless nothing was removed.
    beyond = expected.clone()
    beyond[ids] = -math.inf
    assert computer.is_neutral or not (beyond > -math.inf).any()


def test_a_table_with_one_more_than_top_k_is_enough() -> None:
    computer = find_computer(sample(top_k=2, temperature=0.5), ORDER, has_passed_on=False)
    assert computer is not None
    assert computer.num_wanted == 3
    assert computer.compute([-1.0, -2.0, -3.0]) is not None
    assert computer.compute([-1.0, -2.0]) is None


def test_tokens_that_are_equally_likely_at_the_border_decide_nothing() -> None:
    computer = SecondComputer(sample(top_k=1), ORDER)
    assert computer.compute([-1.0, -1.0, -3.0]) is None
    assert computer.compute([-1.0, -1.1, -3.0]) == [0.0, -math.inf, -math.inf]


@pytest.mark.parametrize(
    "decoding",
    [
        sample(temperature=0.5),  # the sum over the tokens beyond the table is not known
        sample(temperature=0.5, top_p=0.9),
        sample(top_k=5, repetition_penalty=1.1),
        sample(top_k=5, typical_p=0.9),
        sample(top_k=5, logit_bias=((1, 1.0),)),
        Decoding(Strategy.GREEDY, 8, no_repeat_ngram_size=2),
        Decoding(Strategy.FORCED, 8),
    ],
)
def test_settings_whose_result_cannot_be_known_have_no_computer(decoding: Decoding) -> None:
    assert find_computer(decoding, ORDER, has_passed_on=False) is None


def test_unknown_orders_and_fields_have_no_computer() -> None:
    assert find_computer(sample(top_k=5), (), has_passed_on=False) is None
    assert find_computer(sample(top_k=5), ORDER, has_passed_on=True) is None


@pytest.mark.parametrize("decoding", [sample(), Decoding(Strategy.GREEDY, 8)])
def test_without_processors_both_distributions_are_one(decoding: Decoding) -> None:
    computer = find_computer(decoding, (), has_passed_on=False)
    assert computer is not None
    assert computer.is_neutral
    assert computer.compute([-1.0, -2.0]) == pytest.approx([-1.0, -2.0])
