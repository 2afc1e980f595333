"""Operations over the vocabulary for which torch has no single fast operation.

There are two implementations, tested against each other. `cpu_kernels` is compiled for the CPU,
where sorting the vocabulary would take longer than a small model's forward pass. `torch_kernels`
runs on any device.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch


class DrawKey(NamedTuple):
    """Arguments of a row's noise function besides the token id; see `Draw` in step.proto."""

    seed_low: int
    seed_high: int
    step_index: int
    sequence_index: int


class Race(NamedTuple):
    """The outcome of exponential races; all tensors are [rows].

    Attributes:
        token_ids: int64, the winners; 0 if no token could be drawn.
        noises: float64, -log(u) of the winners.
        runner_up_token_ids: int64, the second places; -1 if no other token could be drawn.
        margins: float64, nats between winner and runner-up.
    """

    token_ids: torch.Tensor
    noises: torch.Tensor
    runner_up_token_ids: torch.Tensor
    margins: torch.Tensor


class Explained(NamedTuple):
    """Numbers that explain the choices of a step.

    Attributes:
        ranks: int64 [rows], numbers of tokens that are more likely than the chosen ones.
        candidate_ids: int64 [rows, n]; see `Kernels.find_top_candidates`.
        num_kept: int64 [distributions], numbers of tokens with a logprob above -inf.
        entropies: float32 [distributions], in nats; undefined where it was not needed.
    """

    ranks: torch.Tensor
    candidate_ids: torch.Tensor
    num_kept: torch.Tensor
    entropies: torch.Tensor


class Kernels(Protocol):
    """The operations, over float32 [rows, V]."""

    def count_above(self, values: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
        """Return the number of each row's values above its threshold [rows]: int64 [rows]."""

    def compute_entropies(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Return each row's entropy in nats: float32 [rows]."""

    def find_top_candidates(self, scores: torch.Tensor, num_candidates: int) -> torch.Tensor:
        """Return ids of each row's largest scores, lower ids first among equals: int64 [rows, n].

        The first n ids do not depend on `num_candidates`.
        """

    def explain(
        self,
        scores: torch.Tensor,
        token_ids: torch.Tensor,
        num_candidates: int,
        logprobs: torch.Tensor,
        needs_entropy: Sequence[bool],
    ) -> Explained:
        """Compute the numbers that explain a step's choices, as the methods above would.

        Args:
            scores: [rows, V], from which ranks and candidates are computed.
            token_ids: int64 [rows], the chosen tokens.
            num_candidates: number of candidates; 0 for none.
            logprobs: [distributions, V], normalised.
            needs_entropy: for each distribution, whether its entropy is needed.
        """

    def keep_nucleus(self, scores: torch.Tensor, top_p: float) -> torch.Tensor:
        """Apply top-p: set the least likely tokens, of total mass at most 1 - top_p, to -inf.

        As in transformers' `TopPLogitsWarper`, at least one token stays, and the choice among
        equally likely tokens is not defined.
        """

    def run_race(
        self, logprobs: torch.Tensor, probabilities: torch.Tensor, keys: Sequence[DrawKey]
    ) -> Race:
        """Draw a token for each row, among those with a logprob above -inf.

        Args:
            logprobs: [rows, V], normalised: the distribution drawn from.
            probabilities: [rows, V], exponentials of `logprobs`.
            keys: one for each row.
        """
