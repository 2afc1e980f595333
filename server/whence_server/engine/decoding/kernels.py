"""The passes over the vocabulary that torch has no single fast operation for.

Two implementations, checked against each other: `cpu_kernels` is compiled for the CPU, where a
sort of the vocabulary would cost more than a small model's forward pass; `torch_kernels` runs on
any device.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch


class DrawKey(NamedTuple):
    """What, besides the token id, a row's noise is a function of; see `Draw` in step.proto."""

    seed_low: int
    seed_high: int
    step_index: int
    sequence_index: int


class Race(NamedTuple):
    """The outcome of an exponential race; everything is [rows].

    Attributes:
        token_ids: int64: the winners; 0 where no token could be drawn.
        noises: float64: -log(u) of the winners.
        runner_up_token_ids: int64: -1 where no other token could be drawn.
        margins: float64, nats.
    """

    token_ids: torch.Tensor
    noises: torch.Tensor
    runner_up_token_ids: torch.Tensor
    margins: torch.Tensor


class Kernels(Protocol):
    """The passes, over float32 [rows, V]."""

    def count_above(self, values: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
        """Count each row's values above its threshold [rows]: int64 [rows]."""

    def compute_entropies(
        self, logprobs: torch.Tensor, probabilities: torch.Tensor
    ) -> torch.Tensor:
        """Entropy of each row in nats, from both of its forms: float32 [rows]."""

    def find_top_candidates(self, scores: torch.Tensor, num_candidates: int) -> torch.Tensor:
        """Ids of each row's largest scores, of equal ones the lowest ids: int64 [rows, n].

        The first n are the same whatever `num_candidates` is.
        """

    def keep_nucleus(self, scores: torch.Tensor, top_p: float) -> torch.Tensor:
        """Top-p: -inf for the least likely tokens that have at most 1 - top_p together.

        As transformers' `TopPLogitsWarper`: at least one token stays, and which of equally likely
        ones go is left open.
        """

    def run_race(
        self, logprobs: torch.Tensor, probabilities: torch.Tensor, keys: Sequence[DrawKey]
    ) -> Race:
        """Draw a token for each row; only those with a logprob above -inf can be drawn.

        Args:
            logprobs: [rows, V], normalised: the distribution drawn from.
            probabilities: their exponentials.
            keys: one for each row.
        """
