"""Log probabilities of a span, exact where a probability is close to 1."""

from collections.abc import Sequence

import numpy as np
import torch

_MOST_LOGITS = 1 << 22
"""Logits that are converted to float64 at once."""
_LARGEST_LOGIT = 700.0
"""Logit of a probability beyond which 1 - p underflows in float64."""


def compute_logprobs(logits: torch.Tensor, token_ids: Sequence[int]) -> torch.Tensor:
    """Return the log probability of each token, in float64.

    It is computed from the odds against all other tokens: next to 1, a softmax would lose the
    digits that a logit needs.

    Args:
        logits: [tokens, V]
        token_ids: the tokens that were chosen.
    """
    rows = max(1, _MOST_LOGITS // logits.shape[1])
    parts = []
    for begin in range(0, len(token_ids), rows):
        chosen = torch.tensor(list(token_ids[begin : begin + rows]), device=logits.device)
        part = logits[begin : begin + rows].double()
        own = part.gather(1, chosen.unsqueeze(1))
        others = part.scatter(1, chosen.unsqueeze(1), -torch.inf).logsumexp(1)
        odds = (own.squeeze(1) - others).clamp(max=_LARGEST_LOGIT)
        parts.append(-torch.nn.functional.softplus(-odds, threshold=_LARGEST_LOGIT))
    return torch.cat(parts)


def convert_to_logits(
    logprobs: "np.ndarray[tuple[int], np.dtype[np.float64]]",
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Return log p - log (1 - p) of log probabilities."""
    logprobs = np.minimum(logprobs, -np.exp(-_LARGEST_LOGIT))
    # Each form is exact where the other is not (Maechler, "log1mexp", 2012).
    small = logprobs > -np.log(2)
    rest = np.empty_like(logprobs)
    rest[small] = np.log(-np.expm1(logprobs[small]))
    rest[~small] = np.log1p(-np.exp(logprobs[~small]))
    return logprobs - rest
