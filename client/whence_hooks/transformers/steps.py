"""Messages of a batch's steps, made from the tables of numbers in the recorder's thread."""

from collections.abc import Iterator, Sequence

import numpy as np

from whence.v1.generation_pb2 import FinishReason
from whence.v1.record_pb2 import BatchStep, RecordGenerationsRequest
from whence.v1.step_pb2 import StepTiming
from whence_hooks.transformers.measure import NUM_FIXED, Layout
from whence_hooks.transformers.transfer import Table

_UNENDED = FinishReason.FINISH_REASON_UNSPECIFIED
_ORDER = (
    FinishReason.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.FINISH_REASON_STOP,
    FinishReason.FINISH_REASON_LENGTH,
    FinishReason.FINISH_REASON_TIMEOUT,
)
"""Reasons for a sequence's end; the first one that holds is recorded."""


class StepMessages:
    """Maker of one batch's steps.

    Args:
        batch_number: number of the batch.
        layout: columns of its tables, before those of the stopping criteria.
        num_rows: number of its sequences.
        reasons: reason for an end by each stopping criterion.
    """

    def __init__(
        self,
        batch_number: int,
        layout: Layout,
        num_rows: int,
        reasons: Sequence[FinishReason.ValueType],
    ) -> None:
        self._batch_number = batch_number
        self._layout = layout
        self._running = list(range(num_rows))
        self._reasons = reasons
        self._index = 0

    def make(self, table: Table, timing: StepTiming) -> Iterator[RecordGenerationsRequest]:
        """Yield the message of the next step, unless all rows have ended before it."""
        rows = self._running
        if not rows:
            return
        if len(rows) < len(table):
            table = table[rows]
        step = BatchStep(
            batch_number=self._batch_number, index=self._index, timing=timing, rows=rows
        )
        ends = find_ends(table[:, self._layout.width :], self._reasons)
        fill_step(step, table, self._layout, ends)
        self._running = [row for row, end in zip(rows, ends, strict=True) if end == _UNENDED]
        self._index += 1
        yield RecordGenerationsRequest(step=step)


def find_ends(
    done: Table, reasons: Sequence[FinishReason.ValueType]
) -> list[FinishReason.ValueType]:
    """Return the reason for each row's end.

    Args:
        done: [rows, criteria], 1 where a criterion ends a row.
        reasons: reason of each criterion.
    """
    ends = [_UNENDED] * len(done)
    for row in np.flatnonzero(done.any(1)).tolist():
        held = {reasons[i] for i in np.flatnonzero(done[row]).tolist()}
        ends[row] = next((reason for reason in _ORDER if reason in held), _UNENDED)
    return ends


def fill_step(
    step: BatchStep,
    table: Table,
    layout: Layout,
    ends: Sequence[FinishReason.ValueType],
) -> None:
    """Fill in the arrays of a step.

    Args:
        step: message with its rows.
        table: [rows, columns], one for each of the step's rows.
        layout: columns of the table.
        ends: reason for the end of each row.
    """
    fixed = table[:, :NUM_FIXED].T
    step.token_ids.extend(fixed[0].astype(np.int32).tolist())
    step.finish_reasons.extend(ends)
    step.logprobs.extend(fixed[1].tolist())
    step.sampling_logprobs.extend(fixed[2].tolist())
    step.ranks.extend(fixed[3].astype(np.int32).tolist())
    step.entropies.extend(fixed[4].tolist())
    step.sampling_entropies.extend(fixed[5].tolist())
    begin, width = NUM_FIXED, layout.num_candidates
    if width:
        ids, own, sampling = (
            table[:, begin + i * width : begin + (i + 1) * width].ravel() for i in range(3)
        )
        step.candidate_ids.extend(ids.astype(np.int32).tolist())
        step.candidate_logprobs.extend(own.tolist())
        step.candidate_sampling_logprobs.extend(sampling.tolist())
        begin += 3 * width
    if layout.num_processors:
        middle = begin + layout.num_processors
        step.num_kept.extend(table[:, begin:middle].ravel().astype(np.int32).tolist())
        step.processor_logprobs.extend(table[:, middle : layout.width].ravel().tolist())
