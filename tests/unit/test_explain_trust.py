"""Trust: high for the scores of a known model, none for shuffled ones."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from additive_model import AdditiveModel
from engine_harness import loaded_model, prompt_of

from whence_server.explain.ablation import ablate_halves
from whence_server.explain.leave_one_out import leave_one_out
from whence_server.explain.masks import draw_equal_halves, draw_halves
from whence_server.explain.operators import Operator
from whence_server.explain.rank_correlation import (
    FEWEST_VALUES,
    UNKNOWN,
    Correlation,
    correlate_ranks,
)
from whence_server.explain.scores import Scores
from whence_server.explain.segments import Segment
from whence_server.explain.target import Target
from whence_server.explain.trust import Trust, Verdict, judge, measure_trust

WEIGHTS = [0.0, 0.0, *np.random.default_rng(3).normal(size=20).tolist()]
IDS = tuple(range(2, 22))
TARGET = Target((*IDS, 0), len(IDS), len(IDS))
SEGMENTS = [Segment(i, i + 1) for i in range(len(IDS))]
TRUE = WEIGHTS[2:]
POSITIVE = np.random.default_rng(3).exponential(size=20).tolist()
"""Weights as in most contexts: whatever is taken out, the span is less probable without it."""


def ignore(_done: int, _total: int) -> None:
    """Wait for no progress."""


def measure(
    scores: Sequence[float],
    fitted: Operator | None = None,
    seed: int = 0,
    weights: Sequence[float] = TRUE,
) -> Trust:
    model = AdditiveModel([0.0, 0.0, *weights])
    return measure_trust(model, TARGET, SEGMENTS, scores, ignore, fitted=fitted, seed=seed)


@pytest.mark.parametrize("fitted", [None, *Operator])
def test_scores_that_predict_ablations_have_high_trust(fitted: Operator | None) -> None:
    trust = measure(TRUE, fitted)
    assert trust.correlation.value == pytest.approx(1)
    assert trust.correlation.low > 0.99
    assert trust.verdict is Verdict.HIGH
    assert trust.operator is (Operator.HIDE if fitted is Operator.REMOVE else Operator.REMOVE)
    assert trust.num_ablations == 32
    assert trust.deleted_shares == (0.0, 0.05, 0.1, 0.25, 0.5)
    assert trust.deletion[0] == trust.random_deletion[0]
    for best, random in zip(trust.deletion[1:], trust.random_deletion[1:], strict=True):
        assert best < random
    assert trust.num_passes == 1 + 32 + 4 * (1 + 5)


def test_opposite_scores_have_low_trust() -> None:
    trust = measure([-score for score in TRUE])
    assert trust.correlation.value == pytest.approx(-1)
    assert trust.verdict is Verdict.LOW


@pytest.mark.parametrize("weights", [TRUE, POSITIVE])
def test_shuffled_scores_have_no_trust(weights: Sequence[float]) -> None:
    rng = np.random.default_rng(5)
    shuffled = [
        measure(rng.permutation(weights).tolist(), seed=seed, weights=weights) for seed in range(40)
    ]
    # The correlation of two shuffled rows of 20 numbers has the standard deviation 0.23.
    assert abs(np.mean([trust.correlation.value for trust in shuffled])) < 3 * 0.23 / np.sqrt(40)
    assert sum(trust.verdict is Verdict.UNDETERMINED for trust in shuffled) >= 20
    assert sum(trust.verdict is Verdict.HIGH for trust in shuffled) <= 2


def test_scores_that_are_all_alike_are_undetermined() -> None:
    # Sums of 0.1 differ by rounding.
    for alike in (0.0, 0.1):
        trust = measure([alike] * len(SEGMENTS), weights=POSITIVE)
        assert trust.correlation == UNKNOWN
        assert trust.verdict is Verdict.UNDETERMINED


def test_one_segment_is_undetermined() -> None:
    trust = measure_trust(
        AdditiveModel(WEIGHTS), TARGET, [Segment(0, 5)], [1.0], ignore, fitted=Operator.REMOVE
    )
    assert trust.verdict is Verdict.UNDETERMINED
    assert trust.num_ablations == 0
    assert trust.deleted_shares == (0.0, 1.0)


def test_true_scores_of_few_segments_are_undetermined() -> None:
    # Two or three values have the right order by chance too often to say anything.
    for num in range(2, 8):
        segments = [Segment(i, i + 1) for i in range(num)]
        model = AdditiveModel([0.0, 0.0, *POSITIVE])
        trust = measure_trust(model, TARGET, segments, POSITIVE[:num], ignore)
        expected = (0, Verdict.UNDETERMINED)
        if num >= 6:
            expected = ({6: 20, 7: 32}[num], Verdict.HIGH)
        assert (trust.num_ablations, trust.verdict) == expected, num


def test_few_values_have_no_known_correlation() -> None:
    few, enough = np.arange(FEWEST_VALUES - 1), np.arange(FEWEST_VALUES)
    assert correlate_ranks(few, few) == UNKNOWN
    assert correlate_ranks(enough, enough).value == pytest.approx(1)


@pytest.mark.parametrize("num_segments", [1, 2, 5, 6, 9, 20, 100])
def test_test_rows_are_different_equal_halves_that_the_method_has_not_seen(
    num_segments: int,
) -> None:
    seen = draw_halves(num_segments, 64, 0)
    rows = draw_equal_halves(num_segments, 32, 0, seen)
    keys = {row.tobytes() for row in rows}
    assert len(keys) == len(rows) <= 32
    assert not keys & {row.tobytes() for row in seen}
    assert (rows.sum(1) == num_segments // 2).all()
    # All 64 halves of 6 segments were seen, and of 9 at most 64 of 126 equal ones.
    assert len(rows) == (0 if num_segments <= 6 else 32)
    assert (draw_equal_halves(num_segments, 32, 0, seen) == rows).all()
    num_halves = math.comb(num_segments, num_segments // 2)
    assert len(draw_equal_halves(num_segments, 32, 0)) == min(32, num_halves)


def test_the_judgement_follows_correlation_and_interval() -> None:
    assert judge(Correlation(0.8, 0.6, 0.9)) is Verdict.HIGH
    assert judge(Correlation(0.5, 0.2, 0.7)) is Verdict.MODERATE
    assert judge(Correlation(0.2, 0.05, 0.4)) is Verdict.LOW
    assert judge(Correlation(-0.5, -0.7, -0.2)) is Verdict.LOW
    assert judge(Correlation(0.4, -0.01, 0.7)) is Verdict.UNDETERMINED


@pytest.mark.parametrize("num_levels", [3, 1000])
def test_rank_correlation_is_that_of_scipy(num_levels: int) -> None:
    rng = np.random.default_rng(7)
    ones, noise = rng.integers(num_levels, size=(2, 60)).astype(float)
    others = ones + noise
    found = correlate_ranks(ones, others)
    assert found.value == pytest.approx(scipy.stats.spearmanr(ones, others).statistic)
    bootstrap = scipy.stats.bootstrap(
        (ones, others),
        lambda a, b: scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    assert found.low == pytest.approx(bootstrap.confidence_interval.low, abs=0.05)
    assert found.high == pytest.approx(bootstrap.confidence_interval.high, abs=0.05)


@pytest.mark.parametrize("run", [leave_one_out, ablate_halves])
def test_randomised_weights_change_scores(
    tiny_model: Callable[..., Path], run: Callable[..., Scores]
) -> None:
    target = Target(tuple(prompt_of(50, seed=5)), 49, 49)
    segments = [Segment(begin, begin + 2) for begin in range(1, 49, 2)]
    scores, foreign = (
        run(loaded_model(tiny_model("llama", seed)).model, target, segments, {}, ignore).values
        for seed in (0, 1)
    )
    # Of 24 pairs, chance gives a correlation within 0.4 in 95 of 100 cases.
    assert abs(scipy.stats.spearmanr(scores, foreign).statistic) < 0.5


def test_a_model_that_cannot_hide_is_tested_by_removal(tiny_model: Callable[..., Path]) -> None:
    model = loaded_model(tiny_model("bloom")).model
    target = Target(tuple(prompt_of(20, seed=5)), 19, 19)
    segments = [Segment(begin, begin + 3) for begin in range(1, 19, 3)]
    told: list[tuple[int, int]] = []
    trust = measure_trust(
        model,
        target,
        segments,
        [1.0, 2, 3, 4, 5, 6],
        lambda *work: told.append(work),
        fitted=Operator.REMOVE,
    )
    assert trust.operator is Operator.REMOVE
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1] == told[0][1]


@pytest.mark.parametrize("num_segments", [4, 6, 9])
def test_a_fit_is_not_tested_with_the_ablations_that_it_was_fitted_to(
    tiny_model: Callable[..., Path], num_segments: int
) -> None:
    model = loaded_model(tiny_model("bloom")).model
    target = Target(tuple(prompt_of(20, seed=5)), 19, 19)
    segments = [Segment(1 + 2 * i, 3 + 2 * i) for i in range(num_segments)]
    scores = ablate_halves(model, target, segments, {}, ignore)
    trust = measure_trust(
        model,
        target,
        segments,
        scores.values,
        ignore,
        fitted=Operator.REMOVE,
        fitted_rows=scores.fitted_rows,
    )
    assert trust.operator is Operator.REMOVE
    # Of 6 segments or fewer, the method has seen all halves.
    if num_segments <= 6:
        assert (trust.num_ablations, trust.verdict) == (0, Verdict.UNDETERMINED)
    else:
        assert trust.num_ablations == 32
