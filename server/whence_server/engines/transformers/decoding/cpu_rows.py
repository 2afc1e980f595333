"""Compiled loops over the numbers of one row of the vocabulary, shared by the CPU's kernels."""

from typing import Any

import numba as nb
import numpy as np

from whence_server.engines.transformers.compiled import compile_now

BLOCK = 512
REMOVED = np.float32(-np.inf)
ROW = nb.float32[::1]

_LOWEST = np.float32(-87.0)
"""Logprob of which the exponential is the least normal float32; the entropy takes lower ones for
it, which adds less than 1e-30."""
_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_HALF, _ONE, _BIAS, _SHIFT = np.float32(0.5), np.float32(1.0), np.int32(127), np.int32(23)
_C5, _C4, _C3 = (np.float32(c) for c in (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3))
_C2, _C1, _C0 = (np.float32(c) for c in (4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))


@compile_now(nb.int64(ROW, nb.float32), nogil=True)
def count_above(values: Any, threshold: Any) -> Any:
    """Return the number of values above a threshold."""
    total = 0
    for begin in range(0, len(values), BLOCK):
        block = values[begin : begin + BLOCK]
        # 32 bits as the values, so that SIMD compares eight at a time.
        count: Any = np.int32(0)
        for i in range(len(block)):
            count += np.int32(block[i] > threshold)
        total += count
    return total


@compile_now(nb.float64(ROW), nogil=True, fastmath={"reassoc", "contract"})
def compute_entropy(logprobs: Any) -> Any:
    """Return the entropy of a distribution in nats.

    The exponential is that of the Cephes library (expf), written so that SIMD computes many at a
    time; torch's would need another pass over the vocabulary, and memory for its results.
    """
    total = 0.0
    for begin in range(0, len(logprobs), BLOCK):
        block = logprobs[begin : begin + BLOCK]
        # The sum of a block has 32 bits as the values, so that SIMD adds many at a time.
        of_block: Any = np.float32(0.0)
        for i in range(len(block)):
            # Written like this, NaN becomes the lowest logprob.
            x = block[i] if block[i] > _LOWEST else _LOWEST  # noqa: FURB136 - see above
            halvings = np.int32(_HALF - x * _LOG2_E)
            rest = x + np.float32(halvings) * _LN_2_HIGH + np.float32(halvings) * _LN_2_LOW
            p = ((((_C5 * rest + _C4) * rest + _C3) * rest + _C2) * rest + _C1) * rest + _C0
            p = p * rest * rest + rest + _ONE
            scale = np.int32((_BIAS - halvings) << _SHIFT).view(np.float32)
            of_block -= p * scale * x
        total += np.float64(of_block)
    return total


@compile_now(nb.void(ROW, nb.int64[::1]), nogil=True)
def find_top(scores: Any, token_ids: Any) -> None:
    """Write the ids of the largest scores, lower ids first among equals."""
    num_candidates = len(token_ids)
    num_found = 0
    worst = REMOVED
    for begin in range(0, len(scores) if num_candidates else 0, BLOCK):
        block = scores[begin : begin + BLOCK]
        num_better = num_candidates - num_found
        for i in range(len(block)):
            num_better += block[i] > worst
        for i in range(len(block) if num_better else 0):
            score = block[i]
            if num_found < num_candidates:
                num_found += 1
            elif not score > worst:
                continue
            place = num_found - 1
            while place > 0 and score > scores[token_ids[place - 1]]:
                token_ids[place] = token_ids[place - 1]
                place -= 1
            token_ids[place] = begin + i
            if num_found == num_candidates:
                worst = scores[token_ids[num_found - 1]]
