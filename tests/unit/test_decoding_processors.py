"""Processors applied to a whole batch, compared with transformers' own for each row."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from computing import DEVICE
from decoding_oracle import DECISIONS, GREEDY, SAMPLE, TOKENS, expected
from hypothesis import given, settings
from hypothesis import strategies as st

from whence_server.domain.decoding import Configured, Decoding
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding import Chooser, NothingLeft, Row

V = 61
CHOOSER = Chooser(V, torch.device(DEVICE))

EACH: dict[str, dict[str, Any]] = {
    "logit_bias": {"logit_bias": ((3, 2.5), (7, -4.0), (60, 1.0))},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "no_repeat_ngram 1": {"no_repeat_ngram_size": 1},
    "no_repeat_ngram 3": {"no_repeat_ngram_size": 3},
    "bad_words": {"bad_word_ids": ((5,), (1, 2), (2, 1, 2), (0,)), "eos_token_ids": (0,)},
    "min_new_tokens": {"min_new_tokens": 3, "eos_token_ids": (0, 4), "stop_token_ids": (9,)},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 5},
    "top_k 1": {"top_k": 1},
    "top_k beyond": {"top_k": 500},
    "top_p": {"top_p": 0.8},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.7},
    "epsilon_cutoff": {"epsilon_cutoff": 0.01},
    "eta_cutoff": {"eta_cutoff": 0.05},
    "sequence_bias": {"configured": Configured(sequence_biases=(((1, 2), 4.0), ((3,), -1.0)))},
    "top_h": {"configured": Configured(top_h=0.6)},
    "suppress_tokens": {"configured": Configured(suppress_token_ids=(1, 9, 60))},
    "begin_suppress_tokens": {
        "configured": Configured(begin_suppress_token_ids=(2, 9), begin_suppress_index=2)
    },
    "forced_eos_token": {"configured": Configured(forced_eos_token_ids=(7,)), "max_new_tokens": 3},
    "all configured": {
        "configured": Configured(
            sequence_biases=(((2, 1), 4.0),),
            suppress_token_ids=(1, 9),
            begin_suppress_token_ids=(2, 9),
            top_h=0.8,
            renormalize_logits=True,
        )
    },
}
GREEDY_TOO = [
    name for name in EACH if list_processor_names(dataclasses.replace(GREEDY, **EACH[name]))
]


def make_row(
    decoding: Decoding, prompt: list[int], generated: list[int], sequence_index: int = 0
) -> Row:
    row = Row(decoding, DECISIONS, sequence_index, prompt)
    for token_id in generated:
        row.append(token_id)
    return row


def check(
    decision: object,
    logits: torch.Tensor,
    decoding: Decoding,
    prompt: list[int],
    generated: list[int],
) -> None:
    wanted = expected(logits, decoding, prompt, generated)
    final = wanted.distributions[-1]
    if np.isnan(final).any():
        assert isinstance(decision, NothingLeft)
        return
    assert isinstance(decision, Decision)
    chosen = decision.token_id
    assert tuple(wanted.names) == list_processor_names(decoding)
    assert decision.logprob == pytest.approx(wanted.distributions[0][chosen], abs=2e-5)
    assert decision.sampling_logprob == pytest.approx(final[chosen], abs=2e-5)
    assert decision.candidates is not None
    for token_id, sampling_logprob in zip(
        decision.candidates.token_ids, decision.candidates.sampling_logprobs, strict=True
    ):
        assert sampling_logprob == pytest.approx(final[token_id], abs=2e-5)
    if not wanted.names:
        assert decision.effects is None
        return
    assert decision.effects is not None
    stages = list(zip(wanted.scores, wanted.distributions, strict=True))
    for i, ((before, own), (after, distribution)) in enumerate(itertools.pairwise(stages)):
        assert decision.effects.num_kept[i] == (after > -np.inf).sum(), wanted.names[i]
        removed = np.exp(own[(before > -np.inf) & (after == -np.inf)]).sum()
        assert decision.effects.removed_mass[i] == pytest.approx(removed, abs=2e-5)
        assert decision.effects.token_logprobs[i] == pytest.approx(distribution[chosen], abs=2e-5)


def random_logits(seed: int, num_rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_rows, V, generator=generator) * 2


@pytest.mark.parametrize("index", [0, 2, 3, 5])
@pytest.mark.parametrize(
    ("strategy", "name"),
    [*(("sample", name) for name in EACH), *(("greedy", name) for name in GREEDY_TOO)],
)
def test_a_processor_does_what_transformers_does(strategy: str, name: str, index: int) -> None:
    decoding = dataclasses.replace(SAMPLE if strategy == "sample" else GREEDY, **EACH[name])
    prompts = [[1, 2, 1], [2, 3, 2, 1, 2], [1], [4, 1, 2, 1, 2, 1, 2]]
    generated = [2, 1, 2, 1, 3][:index]
    logits = random_logits(len(name), len(prompts))
    rows = [make_row(decoding, prompt, generated) for prompt in prompts]
    for i, decision in enumerate(CHOOSER.choose(logits, rows)):
        check(decision, logits[i], decoding, prompts[i], generated)


combinations = st.lists(st.sampled_from(sorted(EACH)), unique=True, max_size=7).map(
    lambda names: {key: value for name in names for key, value in EACH[name].items()}
)
token_ids = st.integers(0, 5)


@given(
    seed=st.integers(0, 2**31),
    rows=st.lists(
        st.tuples(
            st.sampled_from([GREEDY, SAMPLE]),
            combinations,
            st.lists(token_ids, min_size=1, max_size=9),
            st.lists(token_ids, max_size=6),
        ),
        min_size=1,
        max_size=6,
    ),
)
@settings(max_examples=80, deadline=None)
def test_mixed_settings_in_a_batch_equal_each_row_alone(
    seed: int, rows: list[tuple[Decoding, dict[str, Any], list[int], list[int]]]
) -> None:
    logits = random_logits(seed, len(rows))
    settled = [
        (dataclasses.replace(decoding, **chosen), prompt, generated)
        for decoding, chosen, prompt, generated in rows
    ]
    batch = [make_row(*one, sequence_index=i) for i, one in enumerate(settled)]
    together = CHOOSER.choose(logits, batch)
    for i, (decoding, prompt, generated) in enumerate(settled):
        check(together[i], logits[i], decoding, prompt, generated)
        row = make_row(decoding, prompt, generated, sequence_index=i)
        assert CHOOSER.choose(logits[i : i + 1], [row]) == [together[i]]
        bare = Row(decoding, TOKENS, i, [*prompt, *generated], num_generated=len(generated))
        [untraced] = CHOOSER.choose(logits[i : i + 1], [bare])
        if isinstance(untraced, Decision):
            assert isinstance(together[i], Decision)
            assert untraced == Decision(*together[i][:3])


def test_words_beyond_the_vocabulary_forbid_nothing() -> None:
    decoding = dataclasses.replace(GREEDY, bad_word_ids=((V + 3,), (1, V)))
    logits = random_logits(0, 1)
    [decision] = CHOOSER.choose(logits, [make_row(decoding, [1], [])])
    assert decision.token_id == logits.argmax()
    assert decision.effects.num_kept == [V]


def test_min_new_tokens_suppresses_tokens_that_end_the_sequence() -> None:
    decoding = dataclasses.replace(
        GREEDY, min_new_tokens=2, eos_token_ids=(0,), stop_token_ids=(1,), ignore_eos=True
    )
    logits = torch.zeros(1, V)
    logits[0, :3] = torch.tensor([8.0, 9.0, 7.0])
    row = make_row(decoding, [5], [])
    [first] = CHOOSER.choose(logits, [row])
    assert first.token_id == 0  # An end of sequence that is ignored ends nothing.
    assert first.effects.num_kept == [V - 1]
    row.append(0)
    row.append(0)
    [third] = CHOOSER.choose(logits, [row])
    assert third.token_id == 1
    assert third.effects == ([V], [0.0], [third.logprob])


def test_a_row_left_without_a_token_does_not_affect_others() -> None:
    everything = tuple((token_id,) for token_id in range(V))
    warped = {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9}
    every = {**warped, "epsilon_cutoff": 1e-4, "eta_cutoff": 1e-3}
    free = dataclasses.replace(SAMPLE, **every)
    stuck = dataclasses.replace(free, bad_word_ids=everything)
    logits = random_logits(4, 3)
    rows = [make_row(decoding, [1], []) for decoding in (free, stuck, free)]
    decisions = CHOOSER.choose(logits, rows)
    assert isinstance(decisions[1], NothingLeft)
    for i in (0, 2):
        assert [decisions[i]] == CHOOSER.choose(logits[i : i + 1], [make_row(free, [1], [])])


def test_temperatures_near_zero_are_greedy_or_fail_with_a_reason() -> None:
    logits = random_logits(5, 2)
    cold = dataclasses.replace(SAMPLE, temperature=1e-6)
    frozen = dataclasses.replace(SAMPLE, temperature=1e-39)
    decision, overflow = CHOOSER.choose(
        logits, [make_row(cold, [1], []), make_row(frozen, [1], [])]
    )
    assert decision.token_id == logits[0].argmax()
    assert decision.sampling_logprob == 0.0
    assert math.isfinite(decision.draw.margin)
    assert decision.draw.margin > 100
    assert isinstance(overflow, NothingLeft)
