"""Steps that wait to be measured together.

What runs between two forward passes finds little in the processor's caches, and a call of numpy
takes several times as long as in a loop. So a few steps are measured by the same calls.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from whence.v1.step_pb2 import StepTiming
from whence_hooks.transformers.host_measure import MAX_AT_ONCE, make_table, measure_scores
from whence_hooks.transformers.measure import Layout, StepMeter
from whence_hooks.transformers.transfer import Table

_MAX_WAIT_NS = 50_000_000
_MAX_BYTES = 16 << 20
"""Bound on the scores that wait."""


class Pending(NamedTuple):
    """One step before it is measured."""

    stages: list[Table]
    token_ids: torch.Tensor
    done: torch.Tensor
    timing: StepTiming


class PendingSteps:
    """Steps of one call whose scores lie in the host's memory, oldest first.

    Args:
        layout: columns of their tables, before those of the stopping criteria.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._steps: list[Pending] = []
        self._num_bytes = 0
        self._since_ns = 0

    @property
    def is_due(self) -> bool:
        """True if the steps have waited long enough, keep much memory, or come slowly."""
        if not self._steps:
            return False
        # The next step of a slow model would be the first to see that this one has waited.
        timing = self._steps[-1].timing
        is_slow = timing.forward_ns + timing.select_ns >= _MAX_WAIT_NS
        waited_ns = time.monotonic_ns() - self._since_ns
        return is_slow or waited_ns >= _MAX_WAIT_NS or self._num_bytes >= _MAX_BYTES

    def add(
        self,
        meter: StepMeter,
        token_ids: torch.Tensor,
        done: Sequence[torch.Tensor],
        timing: StepTiming,
    ) -> None:
        """Add a step.

        Args:
            meter: meter of its scores, which nobody changes until the steps are taken.
            token_ids: int64 [R], the chosen tokens.
            done: the rows that each stopping criterion ends, bool [R].
            timing: durations of the step.
        """
        if not self._steps:
            self._since_ns = time.monotonic_ns()
        stages = meter.list_on_host()
        self._num_bytes += sum(scores.nbytes for scores in stages)
        nobody = torch.zeros((len(token_ids), 0), dtype=torch.bool, device="cpu")
        flags = torch.cat([nobody, *(flags.reshape(-1, 1) for flags in done)], -1)
        # The sequences and the flags may be changed when the step is over.
        self._steps.append(Pending(stages, token_ids.clone(), flags, timing))

    def take(self) -> list[tuple[Table, StepTiming]]:
        """Measure the steps and remove them; return their tables with those of the criteria."""
        steps, self._steps = self._steps, []
        self._num_bytes = 0
        tables: list[tuple[Table, StepTiming]] = []
        while steps:
            num_steps = max(MAX_AT_ONCE // max(steps[0].stages[0].size, 1), 1)
            tables += self._measure(steps[:num_steps])
            del steps[:num_steps]
        return tables

    def _measure(self, steps: list[Pending]) -> list[tuple[Table, StepTiming]]:
        stages = steps[0].stages
        token_ids = steps[0].token_ids.numpy()
        if len(steps) > 1:
            stages = [
                np.concatenate(parts) for parts in zip(*(s.stages for s in steps), strict=True)
            ]
            token_ids = np.concatenate([step.token_ids.numpy() for step in steps])
        measured = measure_scores(stages, min(self._layout.num_candidates, stages[0].shape[1]))
        table = make_table(measured, stages, token_ids, np.arange(len(token_ids)))
        done = np.concatenate([step.done.numpy() for step in steps])
        table = np.concatenate([table, done], -1, dtype=np.float32)
        num_rows = len(steps[0].token_ids)
        return [
            (table[i * num_rows : (i + 1) * num_rows], step.timing) for i, step in enumerate(steps)
        ]
