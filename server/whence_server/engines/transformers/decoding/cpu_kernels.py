"""`Kernels` for the CPU, compiled by numba when this module is imported.

The loops release the GIL, and start no threads that would compete with torch's.
"""

import math
from collections.abc import Sequence
from typing import Any

import numba as nb
import numpy as np
import torch

from whence_server.engines.transformers.compiled import compile_now
from whence_server.engines.transformers.decoding import cpu_rows
from whence_server.engines.transformers.decoding.cpu_rows import BLOCK as _BLOCK
from whence_server.engines.transformers.decoding.cpu_rows import REMOVED as _REMOVED
from whence_server.engines.transformers.decoding.kernels import DrawKey, Explained, Race

_BINS_PER_NAT = np.float32(64.0)
_NUM_BINS = 2048
_LAST_BIN = np.float32(_NUM_BINS - 1)

_MASK = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_WORD_SIZE = 2.0**-32
_LOG_LEAST_NOISE = math.log(-math.log1p(-(2.0**-33)))
"""log(-log(u)) of the largest possible u."""
_PRUNING_MARGIN = 1.0 + 1e-5
"""Factor far above the rounding of a float32 probability, so that pruning never changes a draw."""
_LEAST_NORMAL = np.float32(1e-37)
"""Value below which float32 loses precision."""


def count_above(values: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """See `Kernels.count_above`."""
    counts = torch.empty(len(values), dtype=torch.int64)
    _count_above(_convert_to_array(values), _convert_to_array(thresholds), counts.numpy())
    return counts


def compute_entropies(logprobs: torch.Tensor) -> torch.Tensor:
    """See `Kernels.compute_entropies`.

    torch's own sum would depend on the batch size in its last digits, because torch splits sums
    among threads by the shape of the whole batch.
    """
    found = torch.empty(len(logprobs), dtype=torch.float32)
    _compute_entropies(_convert_to_array(logprobs), found.numpy())
    return found


def explain(
    scores: torch.Tensor,
    token_ids: torch.Tensor,
    num_candidates: int,
    logprobs: torch.Tensor,
    needs_entropy: Sequence[bool],
) -> Explained:
    """See `Kernels.explain`."""
    num_rows, num_tokens = scores.shape
    num_found = min(num_candidates, num_tokens)
    counts = torch.empty(len(logprobs) + num_rows, dtype=torch.int64)
    num_kept, ranks = counts[: len(logprobs)], counts[len(logprobs) :]
    candidate_ids = torch.empty(num_rows, num_found, dtype=torch.int64)
    entropies = torch.empty(len(logprobs), dtype=torch.float32)
    _explain(
        _convert_to_array(scores),
        _convert_to_array(token_ids),
        ranks.numpy(),
        candidate_ids.numpy(),
        _convert_to_array(logprobs),
        np.array(needs_entropy, dtype=np.bool_),
        num_kept.numpy(),
        entropies.numpy(),
    )
    return Explained(ranks, candidate_ids, num_kept, entropies)


def find_top_candidates(scores: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """See `Kernels.find_top_candidates`."""
    token_ids = torch.empty(len(scores), min(num_candidates, scores.shape[1]), dtype=torch.int64)
    _find_top_candidates(_convert_to_array(scores), token_ids.numpy())
    return token_ids


def keep_nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """See `Kernels.keep_nucleus`.

    Probabilities are summed in bins of their scores, so that only the bin at the boundary has to
    be sorted. Sums are float64; if transformers' float32 sum is within rounding of the boundary,
    one token more or less may stay.
    """
    scores = scores.contiguous()
    probabilities = torch.softmax(scores, -1).numpy()
    kept = torch.empty_like(scores)
    bins = np.empty(scores.shape, dtype=np.uint16)
    masses = np.empty(_NUM_BINS, dtype=np.float64)
    boundaries = np.empty(len(scores), dtype=np.int64)
    most_removed = np.full(len(scores), 1.0 - top_p)
    _remove_bins(
        scores.numpy(),
        probabilities,
        scores.amax(-1).numpy(),
        kept.numpy(),
        bins,
        masses,
        boundaries,
        most_removed,
    )
    for row, boundary in enumerate(boundaries):
        inside = np.flatnonzero(bins[row] == boundary)
        ascending = inside[np.argsort(scores[row].numpy()[inside], kind="stable")]
        cumulative = np.cumsum(probabilities[row, ascending], dtype=np.float64)
        num_removed = np.searchsorted(cumulative, most_removed[row], side="right")
        kept[row].numpy()[ascending[: min(num_removed, len(inside) - 1)]] = -np.inf
    return kept


def run_race(logprobs: torch.Tensor, probabilities: torch.Tensor, keys: Sequence[DrawKey]) -> Race:
    """See `Kernels.run_race`."""
    num_rows = len(keys)
    token_ids = torch.empty(2, num_rows, dtype=torch.int64)
    numbers = torch.empty(2, num_rows, dtype=torch.float64)
    _run_race(
        _convert_to_array(logprobs),
        _convert_to_array(probabilities),
        np.array(keys, dtype=np.uint64),
        token_ids.numpy(),
        numbers.numpy(),
        np.empty(_BLOCK, dtype=np.uint32),
        np.empty(_BLOCK, dtype=np.uint32),
    )
    return Race(token_ids[0], numbers[0], token_ids[1], numbers[1])


def _convert_to_array(tensor: torch.Tensor) -> Any:
    return tensor.contiguous().numpy()


_ROWS = nb.float32[:, ::1]


@compile_now(nb.void(_ROWS, nb.float32[::1], nb.int64[::1]), nogil=True)
def _count_above(values: Any, thresholds: Any, counts: Any) -> None:
    for row in range(values.shape[0]):
        counts[row] = cpu_rows.count_above(values[row], thresholds[row])


@compile_now(nb.void(_ROWS, nb.float32[::1]), nogil=True)
def _compute_entropies(logprobs: Any, found: Any) -> None:
    for row in range(logprobs.shape[0]):
        found[row] = cpu_rows.compute_entropy(logprobs[row])


@compile_now(nb.void(_ROWS, nb.int64[:, ::1]), nogil=True)
def _find_top_candidates(scores: Any, token_ids: Any) -> None:
    for row in range(scores.shape[0]):
        cpu_rows.find_top(scores[row], token_ids[row])


@compile_now(
    nb.void(
        _ROWS,
        nb.int64[::1],
        nb.int64[::1],
        nb.int64[:, ::1],
        _ROWS,
        nb.boolean[::1],
        nb.int64[::1],
        nb.float32[::1],
    ),
    nogil=True,
)
def _explain(  # noqa: PLR0917 - a compiled loop takes its arrays one by one
    scores: Any,
    token_ids: Any,
    ranks: Any,
    candidate_ids: Any,
    logprobs: Any,
    needs_entropy: Any,
    num_kept: Any,
    entropies: Any,
) -> None:
    for row in range(scores.shape[0]):
        # Row by row, because one row stays in the cache.
        ranks[row] = cpu_rows.count_above(scores[row], scores[row, token_ids[row]])
        cpu_rows.find_top(scores[row], candidate_ids[row])
    for row in range(logprobs.shape[0]):
        num_kept[row] = cpu_rows.count_above(logprobs[row], _REMOVED)
        entropies[row] = 0.0
        if needs_entropy[row]:
            entropies[row] = cpu_rows.compute_entropy(logprobs[row])


@compile_now(
    nb.void(
        _ROWS,
        _ROWS,
        nb.float32[::1],
        _ROWS,
        nb.uint16[:, ::1],
        nb.float64[::1],
        nb.int64[::1],
        nb.float64[::1],
    ),
    nogil=True,
)
def _remove_bins(  # noqa: PLR0917 - a compiled loop takes its arrays one by one
    scores: Any,
    probabilities: Any,
    tops: Any,
    kept: Any,
    bins: Any,
    masses: Any,
    boundaries: Any,
    most_removed: Any,
) -> None:
    """Remove the bins whose mass fits into `most_removed`, and subtract it there."""
    num_tokens = scores.shape[1]
    for row in range(scores.shape[0]):
        top = tops[row]
        for i in range(num_tokens):
            distance = (top - scores[row, i]) * _BINS_PER_NAT
            # Written like this, NaN falls into the last bin.
            bin_of = distance if distance < _LAST_BIN else _LAST_BIN  # noqa: FURB136 - see above
            bins[row, i] = np.uint16(bin_of)
        for i in range(_NUM_BINS):
            masses[i] = 0.0
        for i in range(num_tokens):
            masses[bins[row, i]] += probabilities[row, i]
        boundary = _NUM_BINS - 1
        while boundary > 0 and masses[boundary] <= most_removed[row]:
            most_removed[row] -= masses[boundary]
            boundary -= 1
        for i in range(num_tokens):
            kept[row, i] = scores[row, i] if bins[row, i] <= boundary else _REMOVED
        boundaries[row] = boundary


@compile_now(
    nb.void(nb.uint32[::1], nb.int64, nb.uint64[:, ::1], nb.int64, nb.uint32[::1]), nogil=True
)
def _compute_first_words(token_ids: Any, num_ids: int, keys: Any, row: int, words: Any) -> None:
    """Compute Philox4x32-10's first output word of counters (token id, index, sequence, 0)."""
    low, high, index, sequence_index = keys[row, 0], keys[row, 1], keys[row, 2], keys[row, 3]
    for i in range(num_ids):
        c0, c1, c2, c3 = np.uint64(token_ids[i]), index, sequence_index, np.uint64(0)
        k0, k1 = low, high
        for _ in range(10):
            product0, product1 = c0 * _M0, c2 * _M1
            c0 = (product1 >> _WORD) ^ c1 ^ k0
            c1 = product1 & _MASK
            c2 = (product0 >> _WORD) ^ c3 ^ k1
            c3 = product0 & _MASK
            k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
        words[i] = c0


@compile_now(
    nb.void(
        _ROWS,
        _ROWS,
        nb.uint64[:, ::1],
        nb.int64[:, ::1],
        nb.float64[:, ::1],
        nb.uint32[::1],
        nb.uint32[::1],
    ),
    nogil=True,
)
def _run_race(  # noqa: PLR0917 - a compiled loop takes its arrays one by one
    logprobs: Any,
    probabilities: Any,
    keys: Any,
    token_ids: Any,
    numbers: Any,
    possible: Any,
    words: Any,
) -> None:
    num_tokens = logprobs.shape[1]
    for row in range(logprobs.shape[0]):
        best, second = math.inf, math.inf  # Logarithms of the keys -log(u) / p.
        winner, runner_up, noise = np.int64(-1), np.int64(-1), 0.0
        for begin in range(0, num_tokens, _BLOCK):
            # Less likely tokens could not win even with the smallest noise.
            least = _LOG_LEAST_NOISE - second - 1e-3
            num_possible = 0
            block = logprobs[row, begin : begin + _BLOCK]
            for i in range(len(block)):
                possible[num_possible] = begin + i
                num_possible += block[i] > least
            _compute_first_words(possible, num_possible, keys, row, words)
            # As -log(u) >= 1 - u, the logarithm is seldom needed.
            reach = math.exp(second) * _PRUNING_MARGIN
            num_open = 0
            for i in range(num_possible):
                token_id, word = possible[i], words[i]
                p = probabilities[row, token_id]
                possible[num_open], words[num_open] = token_id, word
                num_open += (1.0 - (word + 0.5) * _WORD_SIZE < reach * p) | (p < _LEAST_NORMAL)
            for i in range(num_open):
                drawn = -math.log((words[i] + 0.5) * _WORD_SIZE)
                key = math.log(drawn) - logprobs[row, possible[i]]
                if key < best:
                    second, runner_up = best, winner
                    best, winner, noise = key, np.int64(possible[i]), drawn
                elif key < second:
                    second, runner_up = key, np.int64(possible[i])
        token_ids[0, row], token_ids[1, row] = max(winner, 0), runner_up
        numbers[0, row], numbers[1, row] = noise, second - best
