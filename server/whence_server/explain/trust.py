"""Trust in an attribution, measured on its own case.

The linear datamodeling score is the rank correlation between what the scores predict for random
ablations, the sum of the scores of the segments that stay, and what these ablations do (Park et
al., "TRAK", 2023, section 2; ContextCite, section 4.2). The ablations are taken with the operator
that the method did not use, if the model has it: a method that only learned how the model reacts
to one way of taking out does not pass. Where the model has one operator alone, the ablations that
the method was fitted to are left out of the test. All of them keep equally many segments: their
number says nothing then.

The deletion curve is the explained value while the best-scored segments are taken out, beside the
mean of random orders (Petsiuk, Das, Saenko, "RISE", 2018, section 4.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from whence_server.explain.ablated_values import AblatedValues
from whence_server.explain.ablation_rows import Kept
from whence_server.explain.masks import draw_equal_halves
from whence_server.explain.operators import Operator
from whence_server.explain.rank_correlation import (
    FEWEST_VALUES,
    UNKNOWN,
    Correlation,
    correlate_ranks,
)
from whence_server.explain.scores import Progress
from whence_server.explain.segments import Segment
from whence_server.explain.target import Target

VERSION = 2
"""Version of the measurement: trust of different versions cannot be compared."""
NUM_HELD_OUT = 32
NUM_RANDOM_ORDERS = 5
DELETED_SHARES = (0.1, 0.25, 0.5)
MODERATE, HIGH = 0.3, 0.6
"""Correlations from which on trust is moderate, and high."""
_SEED_APART = 0x7472757374
"""Added to a method's seed, so that no ablation is drawn as the method drew it."""


class Verdict(StrEnum):
    """Judgement on an attribution; `TrustVerdict` in the contract."""

    UNDETERMINED = "undetermined"
    LOW = "low"
    MODERATE = "moderate"
    HIGH = "high"


@dataclass(frozen=True)
class Trust:
    """Measured trust in an attribution; `ExplanationTrust` in the contract.

    Attributes:
        verdict: the judgement.
        correlation: linear datamodeling score, with its interval.
        num_ablations: number of ablations that it was measured with; 0 if there are too few.
        operator: operator of these ablations.
        deleted_shares: shares of the segments that are taken out, from 0 on.
        deletion: explained value while the best-scored ones are taken out.
        random_deletion: its mean while random ones are.
        num_passes: number of sequences that the model read.
    """

    verdict: Verdict
    correlation: Correlation
    num_ablations: int
    operator: Operator
    deleted_shares: tuple[float, ...]
    deletion: tuple[float, ...]
    random_deletion: tuple[float, ...]
    num_passes: int


def measure_trust(
    model: Any,
    target: Target,
    segments: Sequence[Segment],
    scores: Sequence[float],
    progress: Progress,
    *,
    fitted: Operator | None = None,
    num_ablations: int = NUM_HELD_OUT,
    seed: int = 0,
    fitted_rows: Kept | None = None,
) -> Trust:
    """Measure how well scores predict what ablations do.

    Args:
        model: transformers' model, in eval mode.
        target: what is explained.
        segments: segments of its context, checked; at least one.
        scores: score of each segment.
        progress: called between the passes.
        fitted: operator that the method used; None if it takes nothing out.
        num_ablations: number of random ablations.
        seed: seed that the method used.
        fitted_rows: ablations that the method was fitted to, with `fitted`.
    """
    reader = AblatedValues(model, target, segments)
    operator = Operator.REMOVE if fitted is None else fitted.other
    if operator not in reader.style.operators:
        operator = Operator.REMOVE
    without = fitted_rows if operator is fitted else None
    halves = draw_equal_halves(len(segments), num_ablations, seed + _SEED_APART, without)
    if len(halves) < FEWEST_VALUES:
        halves = halves[:0]
    counts = _list_counts(len(segments))
    deleted = _delete(np.asarray(scores), counts, seed + _SEED_APART)
    kept = np.vstack([np.ones((1, len(segments)), bool), halves, *deleted])
    total = reader.count_tokens(kept, operator)
    progress(0, total)
    values = reader.measure(kept, operator, progress, total)
    correlation = _correlate(halves, scores, values[1 : 1 + len(halves)], seed)
    curves = values[1 + len(halves) :].reshape(1 + NUM_RANDOM_ORDERS, len(counts))
    whole = float(values[0])
    return Trust(
        judge(correlation),
        correlation,
        len(halves),
        operator,
        (0.0, *(count / len(segments) for count in counts)),
        (whole, *curves[0].tolist()),
        (whole, *curves[1:].mean(0).tolist()),
        reader.num_passes,
    )


def _correlate(
    halves: Kept, scores: Sequence[float], values: "np.ndarray[Any, Any]", seed: int
) -> Correlation:
    if not len(halves):
        return UNKNOWN
    return correlate_ranks(halves @ np.asarray(scores), values, seed)


def judge(correlation: Correlation) -> Verdict:
    """Return the judgement on a linear datamodeling score."""
    if correlation.low <= 0 <= correlation.high:
        return Verdict.UNDETERMINED
    if correlation.value < MODERATE:
        return Verdict.LOW
    return Verdict.MODERATE if correlation.value < HIGH else Verdict.HIGH


def _list_counts(num_segments: int) -> list[int]:
    """Return the numbers of segments that the deletion curve takes out."""
    counts = {1, *(math.ceil(share * num_segments) for share in DELETED_SHARES)}
    return sorted(counts)


def _delete(scores: "np.ndarray[Any, Any]", counts: Sequence[int], seed: int) -> list[Kept]:
    """Return rows without the first segments, of the scores' order and of random ones."""
    rng = np.random.default_rng(seed)
    num = len(scores)
    orders = [np.argsort(-scores, kind="stable")]
    orders += [rng.permutation(num) for _ in range(NUM_RANDOM_ORDERS)]
    curves = []
    for order in orders:
        kept = np.ones((len(counts), num), bool)
        for row, count in zip(kept, counts, strict=True):
            row[order[:count]] = False
        curves.append(kept)
    return curves
