"""Kernel over a parameter and its copy on the CPU, compiled by numba at import.

torch needs four operations, each with the overhead of waking its threads, and takes four times as
long for a small model.
"""

import numba as nb
import numpy as np

from whence_server.engines.transformers.compiled import compile_now

_BLOCK = 4_096
"""Elements that are summed in float32; the blocks' sums are added in float64."""


@compile_now(
    nb.types.UniTuple(nb.float64, 2)(nb.float32[::1], nb.float32[::1]),
    nogil=True,
    fastmath={"reassoc", "contract"},
)
def sum_squares(weights, copied):  # type: ignore[no-untyped-def]
    """Return the sums of squares of `weights - copied` and of `weights`; update the copy.

    Args:
        weights: float32 [n].
        copied: float32 [n]; holds the weights afterwards.
    """
    change, size = 0.0, 0.0
    for begin in range(0, len(weights), _BLOCK):
        block_change, block_size = np.float32(0), np.float32(0)
        for i in range(begin, min(begin + _BLOCK, len(weights))):
            weight = weights[i]
            difference = weight - copied[i]
            block_change += difference * difference
            block_size += weight * weight
            copied[i] = weight
        change += float(block_change)
        size += float(block_size)
    return change, size
