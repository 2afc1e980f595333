"""From a step's scores to the distributions that its tokens are drawn from, stage by stage."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from whence_server.engine.decoding.kernels import Kernels
from whence_server.engine.decoding.processors import Stage, Stages
from whence_server.engine.decoding.rows import Row
from whence_server.engine.decoding.scratch import Scratch


class Distributions(NamedTuple):
    """A batch's distributions: the model's own, and those after its processors.

    Attributes:
        scores: float32 [B, V]: the model's own.
        processed: float32 [B, V]: the scores after all processors; the same where none applies.
        logprobs: float32 [N, V], normalised: first the model's own in the order of the rows, then
            what some of the stages left. A row of NaN is no distribution. Valid until the
            pipeline's next run.
        final_logprobs: [B, V]: of them, those that are drawn from.
        owners: [N]: which of the batch's rows each of them belongs to.
        after_stages: for each row that is explained, which of `logprobs` each of its stages left.
        finals: for each row, which of `logprobs` it is drawn from.
    """

    scores: torch.Tensor
    processed: torch.Tensor
    logprobs: torch.Tensor
    final_logprobs: torch.Tensor
    owners: list[int]
    after_stages: list[list[int]]
    finals: list[int]


class _Application(NamedTuple):
    """One stage, for the rows that share it; `begin` is its place in the table, if it has one."""

    stage: Stage
    members: list[int]
    begin: int | None


class _Plan(NamedTuple):
    """What one step does; the last three are as in `Distributions`."""

    applications: list[_Application]
    owners: list[int]
    after_stages: list[list[int]]
    finals: list[int]


class Pipeline:
    """Applies each stage to all rows that share its setting at once, one stage after another."""

    def __init__(self, vocabulary_size: int, device: torch.device, kernels: Kernels) -> None:
        self._stages = Stages(vocabulary_size, device, kernels)
        self._padding = vocabulary_size
        self._device = device
        self._table = Scratch(vocabulary_size, device)

    def run(self, scores: torch.Tensor, rows: Sequence[Row]) -> Distributions:
        """Make a step's distributions.

        Args:
            scores: float32 [B, V]; not changed. Rows that are no distribution go through the
                stages as zeros, so that no processor stumbles over them.
            rows: B of them.
        """
        plan = _make_plan([self._get_stages(row) for row in rows], rows)
        table = self._table.take(len(plan.owners))
        own = table[: len(rows)]
        torch.log_softmax(scores, -1, out=own)
        # One NaN or +inf among them, or nothing but -inf, and all of a row is NaN.
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
        """What the stages leave of scores [B, V], and nothing else of `run`."""
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
        """Return the scores of the rows that the stage is for, and then those of all rows."""
        stage, members, _ = application
        token_ids = self._pad_histories([rows[i] for i in members] if stage.reads_history else [])
        if len(members) == len(rows):
            after = stage.processor(token_ids, processed)
            return after, after
        index = torch.tensor(members, device=self._device)
        after = stage.processor(token_ids, processed.index_select(0, index))
        if processed is scores:
            processed = scores.clone()
        return after, processed.index_copy_(0, index, after)

    def _pad_histories(self, rows: Sequence[Row]) -> torch.Tensor:
        """Token ids [rows, T], filled up on the left with an id that no vocabulary has.

        transformers' processors ignore ids beyond the scores; n-grams, bad words and penalties
        look at a row from its end, so that a longer neighbour changes nothing for it.
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
