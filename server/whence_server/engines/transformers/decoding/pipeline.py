"""Application of logits processors to a step's scores, stage by stage."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from whence_server.engines.transformers.decoding.constraints import mask_scores
from whence_server.engines.transformers.decoding.kernels import Kernels
from whence_server.engines.transformers.decoding.processors import Stage, Stages
from whence_server.engines.transformers.decoding.rows import Row
from whence_server.engines.transformers.decoding.scratch import Scratch


class Distributions(NamedTuple):
    """A batch's distributions: the model's own, and those after its processors.

    Attributes:
        scores: float32 [B, V], the model's own.
        processed: float32 [B, V], the scores after all processors; `scores` if none applies.
        logprobs: float32 [N, V], normalised: first the model's own in the order of the rows, then
            those after some of the stages. A row of NaN is no distribution. Valid until the
            pipeline's next run.
        final_logprobs: [B, V], the rows of `logprobs` that are drawn from.
        owners: [N], index in the batch of the row that each distribution belongs to.
        after_stages: for each detailed row, the index in `logprobs` after each of its stages.
        finals: for each row, the index in `logprobs` of the distribution drawn from.
    """

    scores: torch.Tensor
    processed: torch.Tensor
    logprobs: torch.Tensor
    final_logprobs: torch.Tensor
    owners: list[int]
    after_stages: list[list[int]]
    finals: list[int]


class _Application(NamedTuple):
    """One stage and the rows that share it; `begin` is its first row in `logprobs`, or None."""

    stage: Stage
    members: list[int]
    begin: int | None


class _Plan(NamedTuple):
    """Plan of one step; the last three fields are those of `Distributions`."""

    applications: list[_Application]
    owners: list[int]
    after_stages: list[list[int]]
    finals: list[int]


class Pipeline:
    """Pipeline of stages; a stage is applied at once to all rows that share its setting."""

    def __init__(self, vocabulary_size: int, device: torch.device, kernels: Kernels) -> None:
        self._stages = Stages(vocabulary_size, device, kernels)
        self._padding = vocabulary_size
        self._device = device
        self._table = Scratch(vocabulary_size, device)

    def run(self, scores: torch.Tensor, rows: Sequence[Row]) -> Distributions:
        """Compute a step's distributions.

        Args:
            scores: float32 [B, V], not changed. Rows with non-finite scores go through the stages
                as zeros, so that no processor fails on them.
            rows: B rows.
        """
        plan = _make_plan([self._get_stages(row) for row in rows], rows)
        table = self._table.take(len(plan.owners))
        own = table[: len(rows)]
        torch.log_softmax(scores, -1, out=own)
        # A row is all NaN if one score is NaN or +inf, or if all are -inf.
        broken = own[:, :1].isnan()
        if scores.is_cuda or broken.any():
            scores = torch.where(broken, 0.0, scores)

        processed = scores
        for application in plan.applications:
            after, processed = self._apply(application, processed, rows, scores)
            if application.begin is not None:
                end = application.begin + len(application.members)
                torch.log_softmax(after, -1, out=table[application.begin : end])
        return Distributions(
            scores=scores,
            processed=processed,
            logprobs=table,
            final_logprobs=_select_places(table, plan.finals),
            owners=plan.owners,
            after_stages=plan.after_stages,
            finals=plan.finals,
        )

    def process(self, scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        """Return scores [B, V] after all stages, without the other results of `run`."""
        processed = scores
        for application in _make_plan([self._get_stages(row) for row in rows], rows).applications:
            _, processed = self._apply(application, processed, rows, scores)
        return processed

    def _apply(
        self,
        application: _Application,
        processed: torch.Tensor,
        rows: Sequence[Row],
        scores: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the new scores of the stage's own rows, and the new scores of all rows."""
        stage, members, _ = application
        of_stage = [rows[i] for i in members]
        if len(members) == len(rows):
            after = self._process(stage, processed, of_stage)
            return after, after
        index = torch.tensor(members, device=self._device)
        after = self._process(stage, processed.index_select(0, index), of_stage)
        if processed is scores:
            processed = scores.clone()
        return after, processed.index_copy_(0, index, after)

    def _process(self, stage: Stage, scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        if stage.constrains:
            return mask_scores(scores, [row.get_constraint() for row in rows])
        return stage.processor(self._pad_histories(rows if stage.reads_history else []), scores)

    def _pad_histories(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return token ids [rows, T], padded on the left with an id outside the vocabulary.

        transformers' processors ignore ids beyond the scores. N-grams, bad words and penalties
        read a row from its end, so that the padding does not change their results.
        """
        histories = [row.token_ids for row in rows]
        longest = max(map(len, histories), default=0)
        padded = np.full((len(rows), longest), self._padding, dtype=np.int64)
        for i, history in enumerate(histories):
            padded[i, longest - len(history) :] = history
        return torch.from_numpy(padded).to(self._device)

    def _get_stages(self, row: Row) -> tuple[Stage, ...]:
        if row.stages is None:
            row.stages = self._stages.make_stages(row.settings)
        return row.stages


def _select_places(table: torch.Tensor, places: list[int]) -> torch.Tensor:
    first, num_places = places[0], len(places)
    if places == list(range(first, first + num_places)):
        return table[first : first + num_places]
    return table.index_select(0, torch.tensor(places, device=table.device))


def _make_plan(stages: list[tuple[Stage, ...]], rows: Sequence[Row]) -> _Plan:
    members: dict[Stage, list[int]] = {}
    last: list[Stage | None] = [None] * len(rows)
    for i, row in enumerate(rows):
        for stage in stages[i]:
            if stage.applies(row.index):
                members.setdefault(stage, []).append(i)
                last[i] = stage

    owners = list(range(len(rows)))
    finals = list(owners)
    places: dict[tuple[int, Stage], int] = {}
    applications = []
    for stage in sorted(members, key=lambda stage: stage.order):
        of_stage = members[stage]
        begin = None
        if any(rows[i].detailed or last[i] is stage for i in of_stage):
            begin = len(owners)
            owners += of_stage
            for place, i in enumerate(of_stage, begin):
                finals[i] = places[i, stage] = place
        applications.append(_Application(stage, of_stage, begin))

    after_stages: list[list[int]] = [[] for _ in rows]
    for i, row in enumerate(rows):
        place = i
        for stage in stages[i] if row.detailed else ():
            place = places.get((i, stage), place)
            after_stages[i].append(place)
    return _Plan(applications, owners, after_stages, finals)
