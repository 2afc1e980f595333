"""Sequences that a model reads, with the keys and values of their common beginning."""

from collections.abc import Sequence
from typing import Any

import torch

from whence_server.engines.transformers import frequencies
from whence_server.engines.transformers.cache import BatchedCache
from whence_server.explain.operators import CallingStyle

CHUNK_TOKENS = 512
"""Most tokens of a pass over one sequence, so that memory grows linearly with its length."""


class CachedSequences:
    """Reader of sequences; without a cache, it reads each one whole.

    Args:
        model: transformers' model, in eval mode.
        style: ways in which it can be called.
    """

    def __init__(self, model: Any, style: CallingStyle) -> None:
        self._model = model
        self._style = style
        self._rotary = frequencies.find(model)
        self._cache: BatchedCache | None = None

    def read(
        self, ids: Sequence[int], positions: Sequence[int], visible: Sequence[bool], num_logits: int
    ) -> torch.Tensor:
        """Read a sequence whose first tokens may be in the cache, which holds all of it afterwards.

        Args:
            ids: its last tokens, those that are not in the cache.
            positions: their positions.
            visible: for all its tokens, false for hidden ones.
            num_logits: number of its last tokens whose logits are wanted, at least 1.

        Returns:
            [num_logits, V]
        """
        if not self._style.reuses_prefix:
            with self._rotary.use_state(self._rotary.make_state()):
                wanted = range(len(ids) - num_logits, len(ids))
                return self._forward([ids], [positions], [visible], None, wanted)[0]
        num_before = len(visible) - len(ids)
        cache = self._cut(num_before)
        logits = []
        for begin in range(0, len(ids), CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, len(ids))
            part = slice(begin, end)
            first = max(len(ids) - num_logits, begin)
            # Some logits are computed in each pass; those before the wanted ones are left.
            wanted = range(min(first, end - 1) - begin, end - begin)
            seen = visible[: num_before + end]
            made = self._forward([ids[part]], [positions[part]], [seen], cache, wanted)[0]
            if first < end:
                logits.append(made)
        return torch.cat(logits)

    def read_together(
        self,
        ids: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        visible: Sequence[Sequence[bool]],
        num_logits: int,
    ) -> list[torch.Tensor]:
        """Read the ends of several sequences, whose common beginning is what the cache holds.

        The shorter ones are padded at their end: no token sees a later one.

        Args:
            ids: for each, the tokens after the beginning.
            positions: their positions.
            visible: for all tokens, false for hidden ones.
            num_logits: number of the last tokens whose logits are wanted.

        Returns:
            For each [num_logits, V]
        """
        width = max(map(len, ids))
        firsts = [len(each) - num_logits for each in ids]
        wanted = sorted({first + i for first in firsts for i in range(num_logits)})
        cache = BatchedCache(self._style.num_layers)
        num_before = len(visible[0]) - len(ids[0])
        if num_before:
            cache.insert(self._cut(num_before), len(ids))
        made = self._forward(
            [[*each, *([each[-1]] * (width - len(each)))] for each in ids],
            [[*each, *([each[-1]] * (width - len(each)))] for each in positions],
            [
                [*seen, *([True] * (width - len(each)))]
                for seen, each in zip(visible, ids, strict=True)
            ],
            cache,
            wanted,
        )
        places = {column: i for i, column in enumerate(wanted)}
        return [
            made[row, [places[first + i] for i in range(num_logits)]]
            for row, first in enumerate(firsts)
        ]

    def _cut(self, num_columns: int) -> BatchedCache:
        """Return the cache with its first columns alone."""
        if self._cache is None or not num_columns:
            self._cache = BatchedCache(self._style.num_layers)
        else:
            self._cache.cut(num_columns)
        return self._cache

    def _forward(
        self,
        ids: Sequence[Sequence[int]],
        positions: Sequence[Sequence[int]],
        visible: Sequence[Sequence[bool]],
        cache: BatchedCache | None,
        wanted: Sequence[int],
    ) -> torch.Tensor:
        """Return the logits of some columns of a pass: [rows, columns, V]."""
        device = self._model.device
        columns = torch.tensor(list(wanted), device=device)
        given = {
            "past_key_values": cache,
            "use_cache": cache is not None,
            "position_ids": torch.tensor([list(row) for row in positions], device=device),
            # Without a mask, positions with gaps would be taken for several sequences.
            "attention_mask": torch.tensor([list(row) for row in visible], device=device).long(),
            "logits_to_keep": columns,
        }
        taken = {name: value for name, value in given.items() if name in self._style.parameters}
        input_ids = torch.tensor([list(row) for row in ids], device=device)
        logits: torch.Tensor = self._model(input_ids=input_ids, **taken).logits
        return logits if "logits_to_keep" in taken else logits[:, columns]
