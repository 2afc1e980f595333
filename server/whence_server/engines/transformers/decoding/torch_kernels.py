"""`Kernels` in torch, for any device that has int64 and float64."""

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import TopPLogitsWarper

from whence_server.engines.transformers.decoding.kernels import DrawKey, Explained, Race

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_NUM_ROUNDS = 10


def count_above(values: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    """See `Kernels.count_above`."""
    return (values > thresholds.unsqueeze(-1)).sum(-1)


def compute_entropies(logprobs: torch.Tensor) -> torch.Tensor:
    """See `Kernels.compute_entropies`."""
    # 0 * -inf is NaN, which nansum counts as 0.
    return -(logprobs.exp() * logprobs).nansum(-1)


def explain(
    scores: torch.Tensor,
    token_ids: torch.Tensor,
    num_candidates: int,
    logprobs: torch.Tensor,
    needs_entropy: Sequence[bool],  # noqa: ARG001 - all rows at once take no longer on a GPU
) -> Explained:
    """See `Kernels.explain`."""
    chosen = scores.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    candidate_ids = token_ids.new_empty(len(scores), 0)
    if num_candidates:
        candidate_ids = find_top_candidates(scores, num_candidates)
    return Explained(
        count_above(scores, chosen),
        candidate_ids,
        (logprobs > -torch.inf).sum(-1),
        compute_entropies(logprobs),
    )


def find_top_candidates(scores: torch.Tensor, num_candidates: int) -> torch.Tensor:
    """See `Kernels.find_top_candidates`.

    The order of equal scores in `topk` is undefined, so that score and id are packed into one
    integer.
    """
    num_tokens = scores.shape[1]
    bits = (scores + 0.0).view(torch.int32)
    ranks = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    reversed_ids = torch.arange(num_tokens - 1, -1, -1, device=scores.device)
    found = (ranks * 2**32 + reversed_ids).topk(min(num_candidates, num_tokens)).values
    return num_tokens - 1 - (found & _MASK)


def keep_nucleus(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """See `Kernels.keep_nucleus`."""
    warper = TopPLogitsWarper(top_p)
    return warper(torch.empty(0, dtype=torch.int64, device=scores.device), scores)


def run_race(logprobs: torch.Tensor, probabilities: torch.Tensor, keys: Sequence[DrawKey]) -> Race:  # noqa: ARG001 - only the CPU's pruning uses them
    """See `Kernels.run_race`."""
    num_tokens = logprobs.shape[1]
    key = torch.tensor(keys, dtype=torch.int64, device=logprobs.device).unsqueeze(-1)  # (B, 4, 1)
    token_ids = torch.arange(num_tokens, device=logprobs.device)
    zero = torch.zeros_like(token_ids)
    counter = (token_ids, key[:, 2], key[:, 3], zero)
    words, *_ = compute_philox_4x32(counter, (key[:, 0], key[:, 1]))  # (B, V)
    noises = -torch.log((words.double() + 0.5) * 2.0**-32)
    race_keys = torch.where(logprobs > -torch.inf, noises.log() - logprobs, torch.inf)

    best, winners = race_keys.min(-1)
    second, runners_up = race_keys.scatter(-1, winners.unsqueeze(-1), torch.inf).min(-1)
    return Race(
        token_ids=winners,
        noises=noises.gather(-1, winners.unsqueeze(-1)).squeeze(-1),
        runner_up_token_ids=torch.where(second.isfinite(), runners_up, -1),
        margins=second - best,
    )


Counter = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def compute_philox_4x32(counter: Counter, key: tuple[torch.Tensor, torch.Tensor]) -> Counter:
    """Compute Philox4x32-10.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.

    Args:
        counter: four words, each an int64 tensor of numbers below 2^32; all six broadcast.
        key: two words of the same type.

    Returns:
        Four words of the same type.
    """
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(_NUM_ROUNDS):
        high0, low0 = _multiply(c0, _M0)
        high1, low1 = _multiply(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _multiply(word: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the high and low words of a product; int64 wraps, so that the shift is masked."""
    product = word * factor
    return (product >> 32) & _MASK, product & _MASK
