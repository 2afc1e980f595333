"""Beam searches of a batch: their rounds, and the steps of the sequences that they return."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from whence.v1.generation_pb2 import FinishReason
from whence.v1.record_pb2 import BatchRound, BatchStep, RecordGenerationsRequest
from whence.v1.step_pb2 import StepTiming
from whence_hooks.transformers.measure import Layout
from whence_hooks.transformers.steps import fill_step, find_ends
from whence_hooks.transformers.transfer import HostTable, Table

_OUT_OF_THE_RACE = -1.0e9
"""Amount that `generate` adds to the score of a hypothesis that must not be chosen."""
_NUM_EXTRA = 3
"""Columns after those of the criteria: the parent's row, the score, and what was added to it."""


class Continuations(NamedTuple):
    """Continuations that a round considers, as `generate` found them.

    Attributes:
        scores: [P, K], the sums of logprobs.
        token_ids: [P, K].
        parents: [P, K], rows of the beams that they extend.
    """

    scores: torch.Tensor
    token_ids: torch.Tensor
    parents: torch.Tensor


def find_continuations(result: Any, arguments: dict[str, Any]) -> Continuations:
    """Return the continuations, from the result and the arguments of the choice of the best."""
    scores, sequences, beam_indices = result
    length = arguments["cur_len"]
    place = length - arguments["decoder_prompt_len"]
    return Continuations(scores, sequences[:, :, length], beam_indices[:, :, place])


def find_kept(continuations: Continuations, hits: torch.Tensor, num_beams: int) -> torch.Tensor:
    """Return the place of each new beam among the continuations, [P, beams]: as in `generate`."""
    running = continuations.scores + hits.to(torch.float32) * _OUT_OF_THE_RACE
    return torch.topk(running, k=num_beams)[1]


def list_columns(continuations: Continuations, added: torch.Tensor) -> list[torch.Tensor]:
    """Return the columns of a round's table that come last.

    Args:
        continuations: the round's continuations.
        added: [P * K, 1], the processed score of each token, which was added to the parent's.
    """
    extra = (continuations.parents.reshape(-1, 1), continuations.scores.reshape(-1, 1), added)
    return [column.to(torch.float32) for column in extra]


class Outcome(NamedTuple):
    """State of the finished hypotheses after a round, best first, as `generate` holds it.

    Attributes:
        sequences: [P, beams, length].
        scores: [P, beams].
        beam_indices: [P, beams, steps], the row of each token's parent; -1 beyond the end.
    """

    sequences: torch.Tensor
    scores: torch.Tensor
    beam_indices: torch.Tensor


class BeamMessages:
    """Maker of the messages of a batch's beam searches.

    Args:
        batch_number: number of the batch.
        layout: columns of the tables, before those of the stopping criteria.
        num_prompts: number of searches.
        num_beams: beams of each.
        num_returned: sequences that each returns.
        reasons: reason for an end by each stopping criterion.
    """

    def __init__(  # noqa: PLR0917 - the shape of a search
        self,
        batch_number: int,
        layout: Layout,
        num_prompts: int,
        num_beams: int,
        num_returned: int,
        reasons: Sequence[FinishReason.ValueType],
    ) -> None:
        self._batch_number = batch_number
        self._layout = layout
        self._num_prompts = num_prompts
        self._num_beams = num_beams
        self._num_returned = num_returned
        self._reasons = reasons
        self._places = [0] * (num_prompts * num_beams)
        """Index of each row among the kept continuations of its prompt's last round."""
        self._rounds: list[_Round] = []
        self._held: BatchRound | None = None
        """The newest round, until it is known whether the search goes on."""

    def make_round(
        self, host: HostTable, kept_host: HostTable, timing: StepTiming
    ) -> Iterator[RecordGenerationsRequest]:
        """Yield the message of the round before this one."""
        table, kept = host.read(), kept_host.read().astype(np.int32).tolist()
        extra = table.shape[1] - _NUM_EXTRA
        ends = find_ends(table[:, self._layout.width : extra], self._reasons)
        self._rounds.append(_Round(table, timing, ends))
        yield from self.release()
        self._held = self._describe(self._rounds[-1], kept)

    def release(self, *, is_last: bool = False) -> Iterator[RecordGenerationsRequest]:
        """Yield the message of the newest round; after the last one nothing is kept."""
        held, self._held = self._held, None
        if held is None:
            return
        if is_last:
            held.kept[:] = [False] * len(held.kept)
        yield RecordGenerationsRequest(round=held)

    def _describe(self, searched: "_Round", kept: list[list[int]]) -> BatchRound:
        index = len(self._rounds) - 1
        described = BatchRound(batch_number=self._batch_number, index=index, timing=searched.timing)
        token_ids, parents, scores = searched.token_ids, searched.parents, searched.scores
        ends = searched.ends
        num_considered = len(token_ids) // self._num_prompts
        places = list(self._places)
        for prompt, kept_places in enumerate(kept):
            listed: dict[int, int] = {}
            for place in range(num_considered):
                i = prompt * num_considered + place
                # Where processors leave few tokens, removed ones fill up the continuations.
                if scores[i] <= _OUT_OF_THE_RACE and place not in kept_places:
                    continue
                if place in kept_places:
                    listed[place] = len(listed)
                described.prompts.append(prompt)
                described.parents.append(self._places[parents[i]])
                described.token_ids.append(token_ids[i])
                described.logprobs.append(searched.added[i])
                described.scores.append(scores[i])
                described.kept.append(place in kept_places)
                described.finished.append(bool(ends[i]) and place < self._num_beams)
            for beam, place in enumerate(kept_places):
                places[prompt * self._num_beams + beam] = listed[place]
        self._places = places
        return described

    def make_steps(self, outcome: Outcome, begin: int) -> Iterator[RecordGenerationsRequest]:
        """Yield the steps of the returned sequences.

        Args:
            outcome: state after the last round, on the host.
            begin: length of the prompts.
        """
        yield from self.release(is_last=True)
        chosen = outcome.beam_indices[:, : self._num_returned].flatten(0, 1)
        sequences = outcome.sequences[:, : self._num_returned, begin:].flatten(0, 1)
        for index, searched in enumerate(self._rounds):
            found = searched.find(chosen[:, index].tolist(), sequences[:, index].tolist())
            if not found:
                return
            rows, places = zip(*found, strict=True)
            step = BatchStep(
                batch_number=self._batch_number,
                index=index,
                timing=searched.timing,
                rows=rows,
            )
            # A hypothesis that goes on is not at its end, although its continuation might be.
            last = [index + 1 >= chosen.shape[1] or chosen[row, index + 1] < 0 for row in rows]
            ends = [
                searched.ends[place] if is_last else FinishReason.FINISH_REASON_UNSPECIFIED
                for place, is_last in zip(places, last, strict=True)
            ]
            fill_step(step, searched.table[list(places)], self._layout, ends)
            yield RecordGenerationsRequest(step=step)


class _Round:
    """Numbers of a round's continuations, to be found by parent and token."""

    def __init__(
        self, table: Table, timing: StepTiming, ends: list[FinishReason.ValueType]
    ) -> None:
        self.table = table
        self.timing = timing
        self.ends = ends
        self.token_ids: list[int] = table[:, 0].astype(np.int32).tolist()
        parents, self.scores, self.added = table[:, -_NUM_EXTRA:].T.tolist()
        self.parents = [int(parent) for parent in parents]
        self._places = {
            pair: place for place, pair in enumerate(zip(self.parents, self.token_ids, strict=True))
        }

    def find(self, parents: list[int], token_ids: list[int]) -> list[tuple[int, int]]:
        """Return (row, place in the table) for the rows that have a token in this round."""
        return [
            (row, self._places[parent, token_id])
            for row, (parent, token_id) in enumerate(zip(parents, token_ids, strict=True))
            if parent >= 0
        ]
