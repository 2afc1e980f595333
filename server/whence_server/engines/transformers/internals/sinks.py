"""Attention sinks: positions that heads attend to when they have nothing to read.

Most trained models give much of their attention to the first position, whatever its token, and
some to later ones (Xiao et al., "Efficient Streaming Language Models with Attention Sinks", 2023).
A sink's values are short, so that attending to it adds next to nothing (Sun et al., "Massive
Activations in Large Language Models", 2024, section 4; Guo et al., "Active-Dormant Attention
Heads", 2024). Attention times norm is not small all the same, because the attention is large. Hence
the rule, which holds for any position and finds none in a model without sinks. Position j is a sink
of a step if

- the norms of its values, summed over heads, are at most `SHORT` of the mean of the other
  positions' sums, and
- the mean attention that heads pay to it is at least `LEAST_ATTENTION`, and above an even part.

The newest position is never a sink: its share is reported by itself.
"""

import torch

SHORT = 0.5
"""Largest part of the others' mean; sinks of SmolLM2-135M have 0.3, and the next shortest 0.7."""
LEAST_ATTENTION = 0.02


def find_sinks(attention: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """Return which positions are sinks: bool [R, W]; padding is none.

    Args:
        attention: mean attention of the heads to each position, [R, W], the newest last.
        sizes: norms of each position's values, summed over heads, [R, W]; 0 for padding.
    """
    lengths = (sizes > 0).sum(1, keepdim=True)
    others = (sizes.sum(1, keepdim=True) - sizes) / (lengths - 1).clamp_min(1)
    even = 1 / lengths.clamp_min(1)
    sinks = (sizes <= SHORT * others) & (attention >= even.clamp_min(LEAST_ATTENTION))
    sinks &= sizes > 0
    sinks[:, -1] = False
    return sinks
