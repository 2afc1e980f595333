"""Intervals of means by resampling (Efron, "Bootstrap Methods", 1979)."""

from collections.abc import Sequence

import torch

NUM_RESAMPLINGS = 2_000


def resample(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean, and the ends of the interval that holds 95 of 100 resamplings' means."""
    given = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    picks = torch.randint(len(given), (NUM_RESAMPLINGS, len(given)), generator=generator)
    low, high = given[picks].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(given.mean()), float(low), float(high)


def format_interval(values: Sequence[float]) -> str:
    """Return the mean and its interval as a text."""
    mean, low, high = resample(values)
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
