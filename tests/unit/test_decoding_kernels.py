"""Kernels: both implementations, compared with each other and with independent ones."""

import math
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TopPLogitsWarper

from whence_server.engines.transformers.decoding import cpu_kernels, torch_kernels
from whence_server.engines.transformers.decoding.kernels import DrawKey

BOTH = pytest.mark.parametrize("kernels", [cpu_kernels, torch_kernels], ids=["cpu", "torch"])
MASK = 0xFFFFFFFF


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Compute Philox4x32-10 with Python integers, from the paper."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return [c0, c1, c2, c3]


def noise(token_id: int, key: DrawKey) -> float:
    word = philox([token_id, key.step_index, key.sequence_index, 0], [key.seed_low, key.seed_high])[
        0
    ]
    return -math.log((word + 0.5) / 2**32)


def some_scores(seed: int, *shape: int, levels: int = 0, removed: float = 0.0) -> torch.Tensor:
    """Return random scores, with ties if `levels` is set, and a share `removed` of -inf."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(*shape, generator=generator) * 3
    if levels:
        scores = (scores * levels / 8).round()
    gone = torch.rand(*shape, generator=generator) < removed
    gone[:, shape[1] // 2] = False
    return scores.masked_fill(gone, -torch.inf)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([MASK] * 4, [MASK] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(
    counter: list[int], key: list[int], expected: str
) -> None:
    words = torch_kernels.compute_philox_4x32(
        tuple(torch.tensor([word]) for word in counter),  # type: ignore[arg-type]
        tuple(torch.tensor([word]) for word in key),  # type: ignore[arg-type]
    )
    assert " ".join(f"{word.item():08x}" for word in words) == expected
    assert " ".join(f"{word:08x}" for word in philox(counter, key)) == expected


@BOTH
@given(
    seed=st.integers(0, 2**64 - 1),
    step_index=st.integers(0, 2**32 - 1),
    sequence_index=st.integers(0, 63),
    data=st.integers(0, 2**32),
    shape=st.sampled_from([(1, 1, 0.0), (3, 7, 0.3), (2, 700, 0.0), (2, 1300, 0.97)]),
    scale=st.sampled_from([0.1, 1.0, 30.0, 1e4]),
)
@settings(max_examples=30, deadline=None)
def test_races_follow_the_contracts_definition(
    kernels: Any,
    seed: int,
    step_index: int,
    sequence_index: int,
    data: int,
    shape: tuple[int, int, float],
    scale: float,
) -> None:
    num_rows, num_tokens, removed = shape
    logprobs = (some_scores(data, num_rows, num_tokens, removed=removed) * scale).log_softmax(-1)
    keys = [
        DrawKey(seed & MASK, seed >> 32, step_index, sequence_index + row)
        for row in range(num_rows)
    ]
    race = kernels.run_race(logprobs, logprobs.exp(), keys)
    for row, key in enumerate(keys):
        ranking = sorted(
            (math.log(noise(token_id, key)) - logprob, token_id)
            for token_id, logprob in enumerate(logprobs[row].tolist())
            if logprob > -math.inf
        )
        assert race.token_ids[row] == ranking[0][1]
        assert race.noises[row] == pytest.approx(noise(ranking[0][1], key), rel=1e-12)
        if len(ranking) == 1:
            assert race.runner_up_token_ids[row] == -1
        else:
            assert race.runner_up_token_ids[row] == ranking[1][1]
            assert race.margins[row] == pytest.approx(ranking[1][0] - ranking[0][0], rel=1e-9)


@BOTH
def test_draws_follow_the_distribution(kernels: Any) -> None:
    logprobs = torch.tensor([0.5, -1.0, 2.0, 0.0, -torch.inf, 1.0]).log_softmax(0)
    num_draws = 6000
    keys = [DrawKey(i % 50, i % 7, i, i % 3) for i in range(num_draws)]
    table = logprobs.expand(num_draws, -1).contiguous()
    drawn = kernels.run_race(table, table.exp(), keys).token_ids
    counts = torch.bincount(drawn, minlength=6).double()
    expected = logprobs.exp().double() * num_draws
    assert counts[4] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    assert chi_square < 18.47  # The 0.999 quantile for 4 degrees of freedom.


@BOTH
@pytest.mark.parametrize("levels", [0, 4])
@pytest.mark.parametrize("num_candidates", [1, 8, 128, 3000])
def test_candidates_are_the_most_likely_and_the_lowest_ids_first(
    kernels: Any, levels: int, num_candidates: int
) -> None:
    scores = some_scores(1, 3, 1500, levels=levels, removed=0.2)
    expected = np.argsort(-scores.numpy(), axis=-1, kind="stable")[:, :num_candidates]
    assert kernels.find_top_candidates(scores, num_candidates).tolist() == expected.tolist()


@BOTH
def test_values_above_a_threshold_are_counted(kernels: Any) -> None:
    values = some_scores(2, 4, 999, levels=5, removed=0.1)
    thresholds = torch.tensor([-torch.inf, values[1, 0], 0.0, torch.inf])
    expected = (values.numpy() > thresholds.numpy()[:, None]).sum(-1)
    assert kernels.count_above(values, thresholds).tolist() == expected.tolist()


@BOTH
def test_entropies_are_in_nats(kernels: Any) -> None:
    logprobs = torch.cat([some_scores(5, 3, 2000, removed=0.5), torch.zeros(1, 2000)])
    logprobs = logprobs.log_softmax(-1)
    expected = torch.special.entr(logprobs.double().exp()).sum(-1)
    found = kernels.compute_entropies(logprobs)
    assert torch.allclose(found.double(), expected, atol=2e-6)
    assert found[3] == pytest.approx(math.log(2000), abs=2e-6)


@BOTH
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0, 1e4])
def test_entropies_are_as_exact_as_float32(kernels: Any, scale: float) -> None:
    logprobs = (some_scores(6, 4, 3000, removed=0.3) * scale).log_softmax(-1)
    expected = torch.special.entr(logprobs.double().exp()).sum(-1)
    found = kernels.compute_entropies(logprobs).double()
    assert torch.allclose(found, expected, rtol=5e-7, atol=5e-7)


@BOTH
@pytest.mark.parametrize("num_candidates", [0, 8, 3000])
def test_explanations_are_those_of_each_kernel(kernels: Any, num_candidates: int) -> None:
    scores = some_scores(7, 3, 1500, levels=5)
    removed = some_scores(8, 2, 1500, removed=0.6).log_softmax(-1)
    logprobs = torch.cat([scores.log_softmax(-1), removed, torch.full((1, 1500), torch.nan)])
    token_ids = torch.tensor([0, 700, 1499])
    needs_entropy = [True, True, True, False, True, False]
    found = kernels.explain(scores, token_ids, num_candidates, logprobs, needs_entropy)
    chosen = scores[torch.arange(3), token_ids]
    assert found.ranks.tolist() == kernels.count_above(scores, chosen).tolist()
    assert found.num_kept.tolist() == (logprobs > -torch.inf).sum(-1).tolist()
    assert found.candidate_ids.shape == (3, min(num_candidates, 1500))
    if num_candidates:
        expected = kernels.find_top_candidates(scores, num_candidates)
        assert torch.equal(found.candidate_ids, expected)
    wanted = torch.tensor(needs_entropy)
    expected = kernels.compute_entropies(logprobs)
    assert torch.equal(found.entropies[wanted], expected[wanted])


@BOTH
def test_a_row_without_a_token_is_harmless(kernels: ModuleType) -> None:
    nothing = torch.full((1, 600), -torch.inf)
    scores = torch.cat([nothing, some_scores(3, 1, 600), torch.full((1, 600), torch.nan)])
    kept = kernels.keep_nucleus(scores, 0.5)
    assert torch.equal(kept[1], kernels.keep_nucleus(scores[1:2], 0.5)[0])
    logprobs = scores.log_softmax(-1)
    keys = [DrawKey(1, 2, 3, 4)] * 3
    race = kernels.run_race(logprobs, logprobs.exp(), keys)
    alone = kernels.run_race(logprobs[1:2], logprobs[1:2].exp(), keys[:1])
    assert race.token_ids[1] == alone.token_ids[0]
    assert 0 <= int(race.token_ids[0]) < 600
    assert 0 <= int(race.token_ids[2]) < 600


@given(
    seed=st.integers(0, 2**32),
    top_p=st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 0.95, 0.999, 1 - 1e-9]),
    num_tokens=st.sampled_from([1, 2, 17, 600, 5000]),
    scale=st.sampled_from([0.0, 0.01, 0.3, 1.0, 20.0]),
    levels=st.sampled_from([0, 4]),
    removed=st.sampled_from([0.0, 0.5]),
)
@settings(max_examples=150, deadline=None)
def test_the_nucleus_equals_transformers_up_to_rounding(
    seed: int, top_p: float, num_tokens: int, scale: float, levels: int, removed: float
) -> None:
    scores = some_scores(seed, 2, num_tokens, levels=levels, removed=removed) * scale
    scores = scores.nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # 0 * -inf
    kept = cpu_kernels.keep_nucleus(scores, top_p)
    reference = TopPLogitsWarper(top_p)(torch.empty(0), scores)
    assert torch.equal(kept[kept > -torch.inf], scores[kept > -torch.inf])
    for row in range(2):
        ascending = scores[row].sort().values
        mass = torch.softmax(ascending.double(), -1).cumsum(-1)
        removed = (kept[row] == -torch.inf).sum(), (reference[row] == -torch.inf).sum()
        # What only one of them removed lies within float32's rounding of the boundary. Which of
        # several equal ones stay is chance there: its sort is not stable.
        between = mass[min(removed) : max(removed)]
        assert ((between - (1 - top_p)).abs() < 2e-6).all()
        assert torch.equal(kept[row].sort().values[removed[0] :], ascending[removed[0] :])
        assert kept[row].amax() == scores[row].amax()
