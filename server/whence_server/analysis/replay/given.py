"""Decisions for tokens that a search chose: their numbers, without a choice of their own."""

from collections.abc import Sequence
from typing import Protocol

import torch

from whence_server.domain.steps import Decision
from whence_server.engines.transformers.decoding.decisions import (
    Choice,
    DecisionBuilder,
    NoChoice,
)
from whence_server.engines.transformers.decoding.devices import choose_kernels
from whence_server.engines.transformers.decoding.pipeline import Pipeline
from whence_server.engines.transformers.decoding.rows import Row


class Deciding(Protocol):
    """Maker of the decisions of rows."""

    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Decision | NoChoice]:
        """Return the decision of each row."""
        ...


class GivenTokens:
    """Maker of the decisions of given tokens: the first of each row's requested ones.

    Args:
        pipeline: of the model.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._builder = DecisionBuilder(choose_kernels(torch.device("cpu")))

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Decision | NoChoice]:
        """Return the decisions.

        Args:
            logits: float32 [B, V], what the rows' processors are applied to.
            rows: B rows.
        """
        token_ids = torch.tensor([row.logprob_token_ids[0] for row in rows])
        distributions = self._pipeline.run(logits, rows)
        return self._builder.build_decisions(distributions, rows, Choice(token_ids, None, []))
