"""Explained value of a target while segments of its context are taken out.

Contexts are read in an order in which successive ones share as long a beginning as possible, and
what the model computed for that beginning is used again: keys and values of a token depend on the
tokens before it alone. Leaving out each segment in turn so goes from the last to the first, and
random halves walk through a tree. (Liu et al., "AttriBoT: A Bag of Tricks for Efficiently
Approximating Leave-One-Out Context Attribution", 2025, for leaving out.)
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from whence_server.engines.transformers import frequencies
from whence_server.engines.transformers.cache import BatchedCache
from whence_server.explain.ablation_rows import Kept, Row, RowMaker, order_rows
from whence_server.explain.operators import CallingStyle, Operator, check_operator, find_style
from whence_server.explain.scores import Progress
from whence_server.explain.segments import Segment
from whence_server.explain.span_values import compute_logprobs
from whence_server.explain.target import Target

Values = np.ndarray[tuple[int], np.dtype[np.float64]]
CHUNK_TOKENS = 512
"""Most tokens of a pass, so that memory grows linearly with the context."""


class AblatedValues:
    """Reader of a target under ablations of its context.

    Args:
        model: transformers' model, in eval mode.
        target: what is explained.
        segments: segments of its context, checked; at least one.

    Attributes:
        style: ways in which the model can be called.
        num_passes: number of sequences read up to now.
        num_tokens: number of tokens read up to now.
    """

    def __init__(self, model: Any, target: Target, segments: Sequence[Segment]) -> None:
        self.style: CallingStyle = find_style(model)
        self.num_passes = 0
        self.num_tokens = 0
        self._model = model
        self._target = target
        self._rows = RowMaker(target, segments, skips_hidden=self.style.skips_hidden)
        self._sequence = _Sequence(model, self.style)
        self._last: Row | None = None

    def count_tokens(self, kept: Kept, operator: Operator) -> int:
        """Return the number of tokens that `measure` will read, if nothing was read before."""
        # Logits after the context's last token choose the span's first; see `_read`.
        num_after = len(self._target.span) - 1
        num_against = max(len(self._target.against) - 1, 0)
        total = 0
        for _, row in self._list_rows(kept, operator, None):
            length = len(row.token_ids)
            if self.style.reuses_prefix:
                total += length - min(row.num_shared, length - 1) + num_after
                total += num_against and num_against + 1
            else:
                total += length + num_after
                total += num_against and num_against + length
        return total

    @torch.inference_mode()
    def measure(self, kept: Kept, operator: Operator, progress: Progress, total: int = 0) -> Values:
        """Return the explained value of each row.

        Args:
            kept: the segments that stay, for each row.
            operator: way in which the others are taken out.
            progress: called after each row, with all tokens that this reader has read.
            total: tokens that the whole job will read.

        Raises:
            NotOfferedError: the model lacks the operator.
        """
        check_operator(self._model, self.style, operator)
        values: Values = np.empty(len(kept))
        for i, row in self._list_rows(kept, operator, self._last):
            values[i] = self._read(row)
            self._last = row
            self.num_passes += 1
            progress(self.num_tokens, max(total, self.num_tokens))
        return values

    def _list_rows(
        self, kept: Kept, operator: Operator, before: Row | None
    ) -> Iterator[tuple[int, Row]]:
        for i in order_rows(kept):
            before = self._rows.make(kept[i], operator, before)
            yield i, before

    def _read(self, row: Row) -> float:
        """Return the explained value after a context."""
        span, against = self._target.span, self._target.against
        logits = self._run(row, row.num_shared, span[:-1])
        value = float(compute_logprobs(logits, span).sum())
        if not against:
            return value
        first = logits[:1]
        if len(against) > 1:
            logits = self._run(row, len(row.token_ids), against[:-1])
            first = torch.cat([first, logits[1:]])
        return value - float(compute_logprobs(first, against).sum())

    def _run(self, row: Row, num_shared: int, following: Sequence[int]) -> torch.Tensor:
        """Read a context and tokens after it.

        Returns:
            Logits after the context and after each token that follows: [1 + following, V].
        """
        end = row.positions[-1] + 1
        # The last token is read again for its logits.
        num_shared = min(num_shared, len(row.token_ids) - 1) if self.style.reuses_prefix else 0
        ids = [*row.token_ids[num_shared:], *following]
        positions = [*row.positions[num_shared:], *range(end, end + len(following))]
        visible = [*row.visible, *([True] * len(following))]
        self.num_tokens += len(ids)
        return self._sequence.read(ids, positions, visible, 1 + len(following))


class _Sequence:
    """The sequence whose keys and values are in the cache; without a cache, each is read whole."""

    def __init__(self, model: Any, style: CallingStyle) -> None:
        self._model = model
        self._style = style
        self._rotary = frequencies.find(model)
        self._cache: BatchedCache | None = None

    def read(
        self, ids: Sequence[int], positions: Sequence[int], visible: Sequence[bool], num_logits: int
    ) -> torch.Tensor:
        """Read a sequence whose first tokens may be in the cache.

        Args:
            ids: its last tokens, those that are not in the cache.
            positions: their positions.
            visible: for all its tokens, false for hidden ones.
            num_logits: number of its last tokens whose logits are wanted.

        Returns:
            [num_logits, V]
        """
        if not self._style.reuses_prefix:
            with self._rotary.use_state(self._rotary.make_state()):
                return self._forward(ids, positions, visible, num_logits)
        num_before = len(visible) - len(ids)
        if self._cache is None or not num_before:
            self._cache = BatchedCache(self._style.num_layers)
        else:
            self._cache.cut(num_before)
        logits = []
        for begin in range(0, len(ids), CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, len(ids))
            part = slice(begin, end)
            num_wanted = min(end - (len(ids) - num_logits), end - begin)
            seen = visible[: num_before + end]
            made = self._forward(ids[part], positions[part], seen, max(num_wanted, 1))
            if num_wanted > 0:
                logits.append(made)
        return torch.cat(logits)

    def _forward(
        self, ids: Sequence[int], positions: Sequence[int], visible: Sequence[bool], num_logits: int
    ) -> torch.Tensor:
        """Return the logits after the last tokens of a pass."""
        device = self._model.device
        given = {
            "past_key_values": self._cache,
            "use_cache": self._cache is not None,
            "position_ids": torch.tensor([list(positions)], device=device),
            # Without a mask, positions with gaps would be taken for several sequences.
            "attention_mask": torch.tensor([list(visible)], device=device).long(),
            "logits_to_keep": num_logits,
        }
        taken = {name: value for name, value in given.items() if name in self._style.parameters}
        input_ids = torch.tensor([list(ids)], device=device)
        logits: torch.Tensor = self._model(input_ids=input_ids, **taken).logits[0]
        return logits[-num_logits:]
