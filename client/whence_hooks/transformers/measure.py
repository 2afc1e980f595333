"""Numbers of one step, for all rows at once, on the model's device.

Everything goes into one float32 table, so that one transfer brings it to the host: ids, ranks and
counts below 2**24 are exact in float32, and no vocabulary is as large.
"""

from typing import NamedTuple

import numpy as np
import torch

from whence_hooks.transformers.host_measure import Floats, make_table, measure_scores

NUM_FIXED = 6
"""Columns before the candidates: token, logprob, sampling logprob, rank, both entropies."""
_BLOCK = 64


class Layout(NamedTuple):
    """Columns of a table: the fixed ones, candidates' ids and logprobs, then processors."""

    num_candidates: int
    num_processors: int

    @property
    def width(self) -> int:
        """Number of columns."""
        return NUM_FIXED + 3 * self.num_candidates + 2 * self.num_processors


class Scratch:
    """Memory for [R, V] that one call uses again in each step.

    Memory of this size goes back to the system after each use, and its pages fault again.
    """

    def __init__(self) -> None:
        self._rooms: dict[str, torch.Tensor] = {}

    def take(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """Return a float32 tensor of another one's shape, with undefined content."""
        room = self._rooms.get(name)
        if room is None or room.shape != like.shape or room.device != like.device:
            room = self._rooms[name] = torch.empty_like(like, dtype=torch.float32)
        return room

    def count_up(self, begin: int, end: int, device: torch.device) -> torch.Tensor:
        """Return the numbers from `begin` to `end`, int64; not to be changed."""
        name = f"{begin}..{end}"
        found = self._rooms.get(name)
        if found is None or found.device != device:
            found = self._rooms[name] = torch.arange(begin, end, device=device)
        return found


class StepMeter:
    """Meter of one step.

    Args:
        scores: float32 [R, V], the model's own. They are read until `measure` returns.
        layout: columns of the table.
        scratch: memory of the call.
    """

    def __init__(self, scores: torch.Tensor, layout: Layout, scratch: Scratch) -> None:
        self._layout = layout
        self._scratch = scratch
        self._scores = scores
        self._after: list[torch.Tensor] = []

    @property
    def is_on_host(self) -> bool:
        """True if the scores lie in the host's memory."""
        return self._scores.device.type == "cpu"

    def list_on_host(self) -> list[Floats]:
        """Return all noted scores, which lie in the host's memory: the model's own come first."""
        return [scores.detach().numpy() for scores in (self._scores, *self._after)]

    def note(self, scores: torch.Tensor) -> None:
        """Note the scores [R, V] after the next processor, read until `measure` returns."""
        self._after.append(scores)

    def gather_final(self, token_ids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the score of each token after all processors, [C, 1]."""
        final = self._after[-1] if self._after else self._scores
        return _gather(final, token_ids.unsqueeze(-1), rows)

    def measure(
        self, token_ids: torch.Tensor, rows: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """Return the columns of a table of some choices.

        Args:
            token_ids: int64 [C], the chosen tokens.
            rows: int64 [C], the row of the scores in which each was chosen; None for one of each
                row, in their order.

        Returns:
            Parts of the table, float32 [C, n], `Layout.width` columns together.
        """
        if self.is_on_host:
            return [self._measure_on_host(token_ids, rows)]
        chosen = token_ids.unsqueeze(-1)
        own = self._compute_logprobs("own", self._scores)
        own_entropies = self._compute_entropies(self._scores, own)
        # Each stage is written over the one before, and the last one stays.
        final, effects = own, []
        for scores in self._after:
            final = self._compute_logprobs("processed", scores)
            effects.append(_gather(final, chosen, rows))
        entropies = (
            self._compute_entropies(self._after[-1], final) if self._after else own_entropies
        )
        columns = [
            chosen.to(torch.float32),
            _gather(own, chosen, rows),
            _gather(final, chosen, rows),
            (_take(self._scores, rows) > _gather(self._scores, chosen, rows))
            .sum(-1, keepdim=True)
            .to(torch.float32),
            _take(own_entropies, rows),
            _take(entropies, rows),
        ]
        if self._layout.num_candidates:
            ids = self._find_candidates()
            columns += [
                _take(ids.to(torch.float32), rows),
                _take(own.gather(-1, ids), rows),
                _take(final.gather(-1, ids), rows),
            ]
        columns += [
            _take((scores > -torch.inf).sum(-1, keepdim=True).to(torch.float32), rows)
            for scores in self._after
        ]
        return columns + effects

    def _measure_on_host(self, token_ids: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        stages = self.list_on_host()
        measured = measure_scores(stages, self._find_num_candidates())
        of = np.arange(len(stages[0])) if rows is None else rows.numpy()
        return torch.from_numpy(make_table(measured, stages, token_ids.numpy(), of))

    def _find_num_candidates(self) -> int:
        return min(self._layout.num_candidates, self._scores.shape[-1])

    def _compute_logprobs(self, name: str, scores: torch.Tensor) -> torch.Tensor:
        """Return the logprobs of scores, [R, V], in the memory of this name."""
        return torch.log_softmax(scores, -1, out=self._scratch.take(name, scores))

    def _compute_entropies(self, scores: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
        """Return each row's entropy in nats, [R, 1]."""
        # The exponentials of the logprobs, in a fifth of the time of torch.exp.
        room = torch.softmax(scores, -1, out=self._scratch.take("probabilities", scores))
        # 0 * -inf is NaN, which nansum counts as 0.
        return -room.mul_(logprobs).nansum(-1, keepdim=True)

    def _find_candidates(self) -> torch.Tensor:
        """Return ids of each row's largest scores, largest first: int64 [R, n].

        The n largest lie in the n blocks with the largest maxima: a pass over the scores finds
        these, and sorting is over few.
        """
        scores, num_candidates = self._scores, self._layout.num_candidates
        num_rows, num_tokens = scores.shape
        num_blocks = num_tokens // _BLOCK
        if num_blocks <= 2 * num_candidates:
            return scores.topk(min(num_candidates, num_tokens)).indices
        blocked = scores[:, : num_blocks * _BLOCK].view(num_rows, num_blocks, _BLOCK)
        blocks = blocked.amax(-1).topk(num_candidates).indices  # (R, n)
        places = self._scratch.count_up(0, _BLOCK, scores.device)
        ids = (blocks.unsqueeze(-1) * _BLOCK + places).view(num_rows, -1)  # (R, n * _BLOCK)
        if num_blocks * _BLOCK < num_tokens:
            rest = self._scratch.count_up(num_blocks * _BLOCK, num_tokens, scores.device)
            ids = torch.cat([ids, rest.expand(num_rows, -1)], dim=-1)
        return ids.gather(-1, scores.gather(-1, ids).topk(num_candidates).indices)


def _gather(scores: torch.Tensor, chosen: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Return the score of each chosen token in its row, [C, 1]."""
    if rows is None:
        return scores.gather(-1, chosen)
    return scores[rows, chosen.squeeze(-1)].unsqueeze(-1)


def _take(values: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return values if rows is None else values.index_select(0, rows)
