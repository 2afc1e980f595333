"""Explained value of a target while segments of its context are taken out.

Contexts are read in an order in which successive ones share as long a beginning as possible, and
what the model computed for that beginning is used again: keys and values of a token depend on the
tokens before it alone. Leaving out each segment in turn so goes from the last to the first, and
random halves walk through a tree. (Liu et al., "AttriBoT: A Bag of Tricks for Efficiently
Approximating Leave-One-Out Context Attribution", 2025, for leaving out.)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from whence_server.explain.ablation_plan import Batch, RowSize, plan_batches
from whence_server.explain.ablation_rows import Kept, Row, RowMaker, order_rows
from whence_server.explain.cached_sequences import CachedSequences
from whence_server.explain.operators import CallingStyle, Operator, check_operator, find_style
from whence_server.explain.scores import Progress
from whence_server.explain.segments import Segment
from whence_server.explain.span_values import compute_logprobs
from whence_server.explain.target import Target

Values = np.ndarray[tuple[int], np.dtype[np.float64]]


class AblatedValues:
    """Reader of a target under ablations of its context.

    Args:
        model: transformers' model, in eval mode.
        target: what is explained.
        segments: segments of its context, checked; at least one.

    Attributes:
        style: ways in which the model can be called.
        num_passes: number of sequences read up to now.
        num_tokens: number of tokens read up to now, with padding.
    """

    def __init__(self, model: Any, target: Target, segments: Sequence[Segment]) -> None:
        self.style: CallingStyle = find_style(model)
        self.num_passes = 0
        self.num_tokens = 0
        self._model = model
        self._vocabulary_size = model.config.get_text_config(decoder=True).vocab_size
        self._target = target
        self._rows = RowMaker(target, segments, skips_hidden=self.style.skips_hidden)
        self._sequences = CachedSequences(model, self.style)
        self._last: Row | None = None

    def count_tokens(self, kept: Kept, operator: Operator) -> int:
        """Return the number of tokens that `measure` will read, if nothing was read before."""
        plan = self._plan(kept, operator, None)
        return sum(batch.num_tokens for batch in plan.batches) + sum(
            map(self._count_contrast, plan.sizes)
        )

    @torch.inference_mode()
    def measure(self, kept: Kept, operator: Operator, progress: Progress, total: int = 0) -> Values:
        """Return the explained value of each row.

        Args:
            kept: the segments that stay, for each row.
            operator: way in which the others are taken out.
            progress: called after each pass, with all tokens that this reader has read.
            total: tokens that the whole job will read.

        Raises:
            NotOfferedError: the model lacks the operator.
        """
        check_operator(self._model, self.style, operator)
        values: Values = np.empty(len(kept))
        plan = self._plan(kept, operator, self._last)
        for batch in plan.batches:
            here = plan.order[batch.begin : batch.end]
            rows = [self._rows.make(kept[i], operator) for i in here]
            values[here] = self._read(rows, batch)
            self.num_passes += len(rows)
            # Only what the cache holds can be shared with the next row.
            self._last = rows[0] if len(rows) == 1 else rows[0].cut(batch.num_prefix)
            progress(self.num_tokens, max(total, self.num_tokens))
        return values

    def _plan(self, kept: Kept, operator: Operator, before: Row | None) -> "_Plan":
        order = order_rows(kept)
        sizes = []
        for i in order:
            row = self._rows.make(kept[i], operator)
            shared = self._rows.count_shared(row, before) if self.style.reuses_prefix else 0
            sizes.append(RowSize(len(row.token_ids), shared))
            before = row
        batches = plan_batches(
            sizes,
            len(self._target.span) - 1,
            self._vocabulary_size,
            # A contrast of several tokens is read after each context by itself.
            together=self.style.reuses_prefix and len(self._target.against) <= 1,
        )
        return _Plan(order, sizes, batches)

    def _count_contrast(self, size: RowSize) -> int:
        """Return the number of tokens that a contrast of several tokens takes."""
        if len(self._target.against) <= 1:
            return 0
        return len(self._target.against) - 1 + (1 if self.style.reuses_prefix else size.length)

    def _read(self, rows: Sequence[Row], batch: Batch) -> list[float]:
        """Return the explained values of a batch."""
        self.num_tokens += batch.num_tokens
        following = self._target.span[:-1]
        if len(rows) == 1:
            (row,) = rows
            value = self._evaluate(self._run(row, batch.num_prefix, following), row)
            self.num_tokens += self._count_contrast(RowSize(len(row.token_ids), 0))
            return [value]
        first = rows[0].cut(batch.num_prefix)
        if batch.num_prefix > batch.num_kept:
            self._run(first, batch.num_kept, ())
        places = [self._continue(row, batch.num_prefix, following) for row in rows]
        logits = self._sequences.read_together(
            [place.ids for place in places],
            [place.positions for place in places],
            [place.visible for place in places],
            1 + len(following),
        )
        return [self._evaluate(each, row) for each, row in zip(logits, rows, strict=True)]

    def _evaluate(self, logits: torch.Tensor, row: Row) -> float:
        """Return the explained value, of logits after a context and after the span's tokens."""
        value = float(compute_logprobs(logits, self._target.span).sum())
        against = self._target.against
        if not against:
            return value
        first = logits[:1]
        if len(against) > 1:
            num_known = len(row.token_ids) - 1 if self.style.reuses_prefix else 0
            first = torch.cat([first, self._run(row, num_known, against[:-1])[1:]])
        return value - float(compute_logprobs(first, against).sum())

    def _run(self, row: Row, num_known: int, following: Sequence[int]) -> torch.Tensor:
        """Read a context and tokens after it.

        Returns:
            Logits after the context and after each token that follows: [1 + following, V].
        """
        place = self._continue(row, num_known, following)
        return self._sequences.read(place.ids, place.positions, place.visible, 1 + len(following))

    @staticmethod
    def _continue(row: Row, num_known: int, following: Sequence[int]) -> "_Place":
        """Return what is read of a context after its known beginning, and tokens after it."""
        end = row.positions[-1] + 1
        return _Place(
            [*row.token_ids[num_known:], *following],
            [*row.positions[num_known:], *range(end, end + len(following))],
            [*row.visible, *([True] * len(following))],
        )


class _Plan(NamedTuple):
    order: list[int]
    sizes: list[RowSize]
    batches: list[Batch]


class _Place(NamedTuple):
    ids: list[int]
    positions: list[int]
    visible: list[bool]
    """An entry for each token, the known ones included."""
