"""Keys and values of all running sequences, written in place in buffers that grow by doubling.

Rows are sequences, columns are positions, and all rows end at the same column: a step writes
one column for every row at once. A row that is shorter than the widest begins further right;
the columns before its first are padding, which the attention mask hides. So the distance
between two columns of a row is the distance between their positions, and sliding windows,
relative biases and rotary embeddings see what they would see alone.

    start           end
      v              v
    | . . . a b c d e|      padding 3, length 5
    | g h i j k l m n|      padding 0, length 8: the widest

transformers' own `DynamicCache` concatenates every layer at every step, and can neither take in
a row nor let one go.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

MIN_COLUMNS = 256
"""Memory that nothing is written to is not taken from the system."""


class BatchedCache(Cache):
    """The cache of a batch whose rows come and go; also that of a single prompt in prefill.

    Args:
        num_layers: the model's attention layers.
        num_columns: columns to have room for from the start; 0 leaves it to the first insert.

    Attributes:
        padding: for each row, how many of the visible columns come before its first.
    """

    def __init__(self, num_layers: int, num_columns: int = 0) -> None:
        super().__init__(layers=[BatchedLayer(num_columns) for _ in range(num_layers)])
        self.padding: list[int] = []
        self.layers: list[BatchedLayer]

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends one layer's new columns; called by the model within its forward pass."""
        return self.layers[layer_idx].update(key_states, value_states)

    @property
    def width(self) -> int:
        """Number of visible columns: the length of the longest row."""
        return self.layers[0].width

    @property
    def lengths(self) -> list[int]:
        """Number of positions that each row holds."""
        width = self.width
        return [width - padding for padding in self.padding]

    def next_columns(self) -> list[torch.Tensor]:
        """Makes room for one more column, which counts as visible and is yet to be written.

        Returns:
            Each layer's visible keys and then values, as views.
        """
        return [buffer for layer in self.layers for buffer in layer.next_column()]

    def insert(self, prefilled: "BatchedCache", num_rows: int = 1) -> None:
        """Appends `num_rows` copies of a single prompt's cache as new rows."""
        more = max(prefilled.width - self.width, 0) if self.padding else 0
        self.padding = [padding + more for padding in self.padding]
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            layer.insert(source, num_rows)
        self.padding += [self.width - prefilled.width] * num_rows

    def remove(self, row: int) -> None:
        """Drops a row; the last row takes its place."""
        for layer in self.layers:
            layer.remove(row)
        self.padding[row] = self.padding[-1]
        self.padding.pop()
        self._trim()

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Makes each destination a copy of what its source was before; for beams.

        Rows that are copied to each other are equally long.
        """
        for layer in self.layers:
            layer.copy_rows(sources, destinations)

    def clear(self) -> None:
        """Drops all rows, whatever state a forward pass that failed left behind."""
        self.padding = []
        for layer in self.layers:
            layer.clear()

    def _trim(self) -> None:
        """Hides the columns in which no row has anything any more."""
        unused = min(self.padding, default=self.width)
        if unused:
            self.padding = [padding - unused for padding in self.padding]
            for layer in self.layers:
                layer.start += unused


class BatchedLayer(CacheLayerMixin):
    """One layer's buffers, each [row capacity, heads, column capacity, head size].

    The visible part is rows [0, num_rows) and columns [start, end). Layers with a sliding window
    keep all columns too: their mask does the rest.
    """

    is_sliding = False

    def __init__(self, num_columns: int = 0) -> None:
        super().__init__()
        self.num_rows = 0
        self.start = 0
        self.end = 0
        self.num_columns = num_columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes the buffers of a prompt's cache, once its first forward pass shows the shapes."""
        self.num_rows = key_states.shape[0]
        num_columns = max(self.num_columns, key_states.shape[2])
        self.keys = _room(key_states, self.num_rows, num_columns)
        self.values = _room(value_states, self.num_rows, num_columns)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends columns to all rows; returns all visible keys and values, as views.

        Args:
            key_states: [num_rows, heads, new columns, head size]
            value_states: the same; its head size may be another.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new = key_states.shape[2]
        self._make_room(num_new)
        keys = self.keys.narrow(0, 0, self.num_rows)
        values = self.values.narrow(0, 0, self.num_rows)
        keys.narrow(2, self.end, num_new).copy_(key_states)
        values.narrow(2, self.end, num_new).copy_(value_states)
        self.end += num_new
        width = self.end - self.start
        return keys.narrow(2, self.start, width), values.narrow(2, self.start, width)

    def next_column(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Makes room for one more column; all visible keys and values with it, as views."""
        self._make_room(1)
        self.end += 1
        rows, columns = slice(0, self.num_rows), slice(self.start, self.end)
        return self.keys[rows, :, columns], self.values[rows, :, columns]

    @property
    def width(self) -> int:
        """Number of visible columns."""
        return self.end - self.start

    def get_seq_length(self) -> int:
        """The visible columns, under the name by which transformers asks for them."""
        return self.end - self.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(columns visible once that many more are written, offset of the first)."""
        return self.end - self.start + query_length, 0

    def get_max_length(self) -> int:
        """-1: the buffers grow."""
        return -1

    def insert(self, source: "BatchedLayer", num_rows: int) -> None:
        """Appends `num_rows` copies of the source's only row."""
        length = source.width
        total = self.num_rows + num_rows
        if not self.is_initialized:
            columns = max(2 * length, MIN_COLUMNS)
            self.keys = _room(source.keys, total, columns)
            self.values = _room(source.values, total, columns)
            self.is_initialized = True
        if self.num_rows == 0:
            self.start = self.end = min(length, self.keys.shape[2])
        widest = max(length, self.width)
        if total > self.keys.shape[0] or self.end < length:
            self._move(total, widest, first=widest - self.width)
        start = self.end - widest
        first = self.end - length
        for buffer, other in ((self.keys, source.keys), (self.values, source.values)):
            # What earlier rows left behind may be NaN, and a masked weight of 0 times NaN is NaN.
            buffer[: self.num_rows, :, start : self.start] = 0
            buffer[self.num_rows : total, :, start:first] = 0
            buffer[self.num_rows : total, :, first : self.end] = other[
                :, :, source.start : source.end
            ]
        self.start = start
        self.num_rows = total

    def remove(self, row: int) -> None:
        """Moves the last row into the given one's place."""
        last = self.num_rows - 1
        if row != last:
            for buffer in (self.keys, self.values):
                buffer[row, :, self.start : self.end] = buffer[last, :, self.start : self.end]
        self.num_rows = last

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Makes each destination a copy of what its source was before."""
        copied = torch.tensor(sources, device=self.keys.device)
        replaced = torch.tensor(destinations, device=self.keys.device)
        for buffer in (self.keys, self.values):
            visible = buffer[:, :, self.start : self.end]
            visible.index_copy_(0, replaced, visible.index_select(0, copied))

    def clear(self) -> None:
        """Drops all rows and keeps the buffers."""
        self.num_rows = self.start = self.end = 0

    def _make_room(self, num_columns: int) -> None:
        if self.end + num_columns > self.keys.shape[2]:
            self._move(self.num_rows, self.width + num_columns, first=0)

    def _move(self, num_rows: int, num_columns: int, *, first: int) -> None:
        """Takes the visible part over to new buffers, where it begins at column `first`.

        There is room for twice the columns asked for, so that copying is paid for by the steps
        in between, and it happens once for each doubling.
        """
        # Of rows no more than are there: many short ones may be followed by a few long ones.
        rows = 1 << (num_rows - 1).bit_length()
        columns = max(2 * num_columns, MIN_COLUMNS)
        end = first + self.width
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = _room(old, rows, columns)
            new[: self.num_rows, :, first:end] = old[: self.num_rows, :, self.start : self.end]
            setattr(self, name, new)
        self.start, self.end = first, end


def _room(like: torch.Tensor, num_rows: int, num_columns: int) -> torch.Tensor:
    _, heads, _, size = like.shape
    return like.new_empty(num_rows, heads, num_columns, size)
