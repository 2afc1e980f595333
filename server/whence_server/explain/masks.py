"""Random halves of the segments of a context."""

from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from whence_server.explain.ablation_rows import Kept

_MOST_LISTED = 20_000
"""Most halves that are listed before some of them are drawn."""


def draw_halves(num_segments: int, num_rows: int, seed: int) -> Kept:
    """Return rows in which each segment stays with a probability of a half.

    Rows differ from each other. If there are no more different rows than are asked for, all of
    them are returned.

    Args:
        num_segments: number of segments.
        num_rows: number of rows.
        seed: seed of the draws.

    Returns:
        Bool [rows, segments], true for those that stay.
    """
    if num_segments < num_rows.bit_length() and 1 << num_segments <= num_rows:
        numbers = np.arange(1 << num_segments)
        every: Kept = (numbers[:, None] >> np.arange(num_segments)) & 1 == 1
        return every
    rng = np.random.default_rng(seed)
    rows: dict[bytes, np.ndarray[Any, Any]] = {}
    while len(rows) < num_rows:
        row = rng.random(num_segments) < 0.5
        rows.setdefault(row.tobytes(), row)
    return np.array(list(rows.values()))


def draw_equal_halves(
    num_segments: int, num_rows: int, seed: int, without: Kept | None = None
) -> Kept:
    """Return rows in which as many segments stay as in any other: a half, rounded down.

    Where the number of segments that stay varies, it alone tells much of what a model answers, and
    any scores with a positive sum would predict it.

    Args:
        num_segments: number of segments.
        num_rows: number of rows; there are fewer if fewer differ from each other.
        seed: seed of the draws.
        without: rows that are not drawn, [rows, segments].

    Returns:
        Bool [rows, segments], true for those that stay.
    """
    rng = np.random.default_rng(seed)
    half = num_segments // 2
    rows: list[np.ndarray[Any, Any]] = []
    seen = set() if without is None else {row.tobytes() for row in np.asarray(without, bool)}
    if comb(num_segments, half) <= _MOST_LISTED:
        halves = list(combinations(range(num_segments), half))
        drawn = (list(halves[i]) for i in rng.permutation(len(halves)))
    else:
        drawn = (rng.permutation(num_segments)[:half].tolist() for _ in iter(int, 1))
    for kept in drawn:
        if len(rows) == num_rows:
            break
        row = np.zeros(num_segments, bool)
        row[kept] = True
        if row.tobytes() not in seen:
            seen.add(row.tobytes())
            rows.append(row)
    return np.array(rows, bool).reshape(len(rows), num_segments)
