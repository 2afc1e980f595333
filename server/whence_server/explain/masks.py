"""Random halves of the segments of a context."""

from typing import Any

import numpy as np

from whence_server.explain.ablation_rows import Kept


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
