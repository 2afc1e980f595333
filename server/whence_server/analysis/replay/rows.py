"""Rows of a recorded sequence: the state before each step, from which its token is chosen again."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.replay.comparison import StepComparison
from whence_server.constraints.errors import ConstraintError
from whence_server.domain.decoding import TraceDetail, TraceOptions
from whence_server.domain.steps import Decision, Step
from whence_server.engines.transformers.decoding.constraints import RowConstraint
from whence_server.engines.transformers.decoding.decisions import NoChoice
from whence_server.engines.transformers.decoding.rows import Row

ROWS_TOGETHER = 32
"""Steps that are chosen again at once; bounds the memory of their distributions."""


class SequenceReplay:
    """Replay of one sequence's choices, whose logits come a pass at a time.

    Args:
        comparison: compares each step.
        prompt_ids: the prompt.
        steps: the recorded steps, by index from 0.
        constraint: state of the constraint before the first step, which goes on; None without one.
    """

    def __init__(
        self,
        comparison: StepComparison,
        prompt_ids: Sequence[int],
        steps: Sequence[Step],
        constraint: RowConstraint | None,
    ) -> None:
        self._comparison = comparison
        self._num_prompt_tokens = len(prompt_ids)
        self._steps = steps
        self._constraint = constraint
        # Of numbers, and not a list: a row copies it for every step.
        ids = [*prompt_ids, *(step.decision.token_id for step in steps)]
        self._history = np.array(ids, dtype=np.int64)

    def compare(self, first: int, logits: torch.Tensor) -> Iterator[pb.StepVerification]:
        """Yield the comparison of each step.

        Args:
            first: index of the first step.
            logits: [steps, V], from which its tokens were chosen.
        """
        for begin in range(0, len(logits), ROWS_TOGETHER):
            part = logits[begin : begin + ROWS_TOGETHER].float().cpu()
            if self._comparison.takes_logprobs:
                part = torch.log_softmax(part, -1)
            steps = self._steps[first + begin : first + begin + len(part)]
            rows = [self._make_row(step) for step in steps]
            for row, step, own, decision in zip(
                rows, steps, part, self._choose(part, rows), strict=True
            ):
                yield self._comparison.compare(step, row, own, decision)

    def _choose(self, logits: torch.Tensor, rows: Sequence[Row]) -> list[Decision | NoChoice]:
        """Return the decisions of rows; NoChoice for one whose constraint its tokens violate."""
        try:
            return self._comparison.chooser.choose(logits, rows)
        except ConstraintError as error:
            if len(rows) == 1:
                return [NoChoice("CONSTRAINT_FAILED", f"the constraint {error.message}")]
        return [
            self._choose(logits[place : place + 1], rows[place : place + 1])[0]
            for place in range(len(rows))
        ]

    def _make_row(self, step: Step) -> Row:
        """Return the state before a step; the constraint goes on to the state after it."""
        index, decision = step.index, step.decision
        listed = decision.candidates.token_ids if decision.candidates else []
        requested = self._comparison.logprob_token_ids
        trace = TraceOptions(
            TraceDetail.DECISIONS,
            self._comparison.count_candidates(decision),
            logprob_token_ids=(decision.token_id, *listed, *requested),
        )
        row = Row(
            self._comparison.decoding,
            trace,
            step.sequence_index,
            self._history[: self._num_prompt_tokens + index],
            index,
            constraint=None if self._constraint is None else self._constraint.copy(),
        )
        if self._constraint is not None:
            self._constraint.advance(decision.token_id)
        return row
