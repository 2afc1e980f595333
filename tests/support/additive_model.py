"""A model whose output is known: the logit of token 0 is a sum, or a maximum, over what it sees."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig

NEVER = -1e9


class AdditiveModel(torch.nn.Module):
    """A model in which each token adds its weight to the logit of token 0.

    Token 1 has the logit 0, and all others never come.

    Args:
        weights: weight of each token id.
        takes_largest: true to take the largest weight instead of the sum.
    """

    def __init__(self, weights: list[float], *, takes_largest: bool = False) -> None:
        super().__init__()
        self.table = torch.tensor(weights, dtype=torch.float64)
        self.takes_largest = takes_largest
        self.config = LlamaConfig(vocab_size=len(weights), num_hidden_layers=1)
        self.device = torch.device("cpu")
        self.dtype = torch.float64

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> Any:
        """Return logits for each position."""
        seen = self.table[input_ids].masked_fill(attention_mask == 0, 0)
        told = seen.cummax(1).values if self.takes_largest else seen.cumsum(1)
        logits = torch.full((*input_ids.shape, len(self.table)), NEVER, dtype=torch.float64)
        logits[..., 0], logits[..., 1] = told, 0
        return SimpleNamespace(logits=logits)
