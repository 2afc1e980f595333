"""Messages of a batch's steps, made from the tables of numbers in the recorder's thread."""

from collections.abc import Iterator, Sequence

import torch

from whence.v1.generation_pb2 import FinishReason
from whence.v1.record_pb2 import BatchStep, RecordGenerationsRequest
from whence.v1.step_pb2 import StepTiming
from whence_hooks.transformers.measure import NUM_FIXED, Layout
from whence_hooks.transformers.transfer import HostTable

_UNENDED = FinishReason.FINISH_REASON_UNSPECIFIED
_ORDER = (
    FinishReason.FINISH_REASON_END_OF_SEQUENCE,
    FinishReason.FINISH_REASON_STOP,
    FinishReason.FINISH_REASON_LENGTH,
    FinishReason.FINISH_REASON_TIMEOUT,
)
"""Reasons for a sequence's end, of which the first that holds is recorded."""


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

    def make(self, host: HostTable, timing: StepTiming) -> Iterator[RecordGenerationsRequest]:
        """Yield the message of the next step, unless all rows have ended before it."""
        table = host.read()
        rows = self._running
        if not rows:
            return
        if len(rows) < len(table):
            table = table[torch.tensor(rows)]
        step = BatchStep(
            batch_number=self._batch_number, index=self._index, timing=timing, rows=rows
        )
        ends = find_ends(table[:, self._layout.width :], self._reasons)
        fill_step(step, table, self._layout, ends)
        self._running = [row for row, end in zip(rows, ends, strict=True) if end == _UNENDED]
        self._index += 1
        yield RecordGenerationsRequest(step=step)


def find_ends(
    done: torch.Tensor, reasons: Sequence[FinishReason.ValueType]
) -> list[FinishReason.ValueType]:
    """Return the reason for each row's end.

    Args:
        done: [rows, criteria], 1 where a criterion ends a row.
        reasons: reason of each criterion.
    """
    ends = [_UNENDED] * len(done)
    if not done.any():
        return ends
    for row, flags in enumerate(done.tolist()):
        held = {reason for reason, flag in zip(reasons, flags, strict=True) if flag}
        ends[row] = next((reason for reason in _ORDER if reason in held), _UNENDED)
    return ends


def fill_step(
    step: BatchStep,
    table: torch.Tensor,
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
    fixed = table[:, :NUM_FIXED].T.tolist()
    step.token_ids.extend(map(int, fixed[0]))
    step.finish_reasons.extend(ends)
    step.logprobs.extend(fixed[1])
    step.sampling_logprobs.extend(fixed[2])
    step.ranks.extend(map(int, fixed[3]))
    step.entropies.extend(fixed[4])
    step.sampling_entropies.extend(fixed[5])
    begin, num_candidates = NUM_FIXED, layout.num_candidates
    if num_candidates:
        ids, own, sampling = (
            table[:, begin + i * num_candidates : begin + (i + 1) * num_candidates]
            for i in range(3)
        )
        step.candidate_ids.extend(ids.flatten().int().tolist())
        step.candidate_logprobs.extend(own.flatten().tolist())
        step.candidate_sampling_logprobs.extend(sampling.flatten().tolist())
        begin += 3 * num_candidates
    if layout.num_processors:
        middle = begin + layout.num_processors
        num_kept, logprobs = table[:, begin:middle], table[:, middle : layout.width]
        step.num_kept.extend(num_kept.flatten().int().tolist())
        step.processor_logprobs.extend(logprobs.flatten().tolist())
