"""Rank correlation, and its interval by resampling."""

from typing import Any, NamedTuple

import numpy as np

NUM_RESAMPLES = 1000
FEWEST_VALUES = 12
"""Fewest values that say something: with four, one order in 24 is right by chance, and most of
the resamplings agree with it.
"""
_SHARE_OUTSIDE = 0.05
_ROUNDING = 1e-12
"""Share of the largest value by which values that are alike may differ."""


class Correlation(NamedTuple):
    """Rank correlation with the interval of 95% of the resamplings."""

    value: float
    low: float
    high: float


UNKNOWN = Correlation(0.0, -1.0, 1.0)
"""Correlation of too few values, or of values that are all alike."""


def correlate_ranks(
    ones: "np.ndarray[Any, Any]", others: "np.ndarray[Any, Any]", seed: int = 0
) -> Correlation:
    """Return Spearman's correlation of two rows of numbers, with its bootstrap interval.

    (Efron, "Bootstrap Methods: Another Look at the Jackknife", 1979.) A resampling in which all
    values are alike has the correlation 0.
    """
    if len(ones) < FEWEST_VALUES or _are_alike(ones) or _are_alike(others):
        return UNKNOWN
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(ones), size=(NUM_RESAMPLES, len(ones)))
    found = _correlate(rank(ones[drawn]), rank(others[drawn]))
    low, high = np.quantile(found, (_SHARE_OUTSIDE / 2, 1 - _SHARE_OUTSIDE / 2))
    (value,) = _correlate(rank(ones[None]), rank(others[None]))
    return Correlation(float(value), float(low), float(high))


def _are_alike(values: "np.ndarray[Any, Any]") -> bool:
    return bool(np.ptp(values) <= _ROUNDING * np.abs(values).max())


def rank(rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return the ranks within each row, from 0; equal values share their mean rank."""
    less = rows[:, None, :] < rows[:, :, None]
    equal = rows[:, None, :] == rows[:, :, None]
    ranks: np.ndarray[Any, Any] = less.sum(-1) + (equal.sum(-1) - 1) / 2
    return ranks


def _correlate(
    ones: "np.ndarray[Any, Any]", others: "np.ndarray[Any, Any]"
) -> "np.ndarray[Any, Any]":
    ones = ones - ones.mean(1, keepdims=True)
    others = others - others.mean(1, keepdims=True)
    scale = np.sqrt((ones**2).sum(1) * (others**2).sum(1))
    correlations: np.ndarray[Any, Any] = (ones * others).sum(1) / np.where(scale > 0, scale, 1.0)
    return correlations
