"""Key-value cache of all running sequences, written in place in buffers that grow by doubling.

Rows are sequences, columns are positions, and all rows end at the same column, so that a step
writes one column for all rows. A row that is shorter than the longest begins further right; the
columns before its first are padding, which the attention mask hides. The distance between two
columns of a row equals the distance between their positions, so that sliding windows, relative
biases and rotary embeddings work as for a single sequence.

    start           end
      v              v
    | . . . a b c d e|      padding 3, length 5
    | g h i j k l m n|      padding 0, length 8: the widest

transformers' `DynamicCache` concatenates every layer at every step, and cannot add or remove rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from whence_server.engines.transformers.columns import Columns, make_buffer


class BatchedCache(Cache):
    """Cache of a batch whose rows come and go, and of a single prompt in prefill.

    Args:
        num_layers: number of the model's attention layers.
        num_columns: initial capacity in columns; 0 leaves it to the first insert.

    Attributes:
        padding: for each row, the number of visible columns before its first.
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
        """Append one layer's new columns; the model calls this in its forward pass."""
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

    @property
    def values(self) -> list[torch.Tensor]:
        """Each layer's visible values, [rows, heads, width, head size], as views."""
        return [layer.values[: layer.num_rows, :, layer.start : layer.end] for layer in self.layers]

    def add_columns(self) -> list[torch.Tensor]:
        """Add a visible column, which the caller has to write.

        Returns:
            Each layer's visible keys and then values, as views.
        """
        return [buffer for layer in self.layers for buffer in layer.add_column()]

    def list_columns(self, row: int = 0) -> list[torch.Tensor]:
        """Return one row's keys and then values of each layer, [heads, length, size], as views."""
        # A single prompt's cache has no padding.
        padding = self.padding[row] if self.padding else 0
        return [
            buffer[row, :, layer.start + padding : layer.end]
            for layer in self.layers
            for buffer in (layer.keys, layer.values)
        ]

    def cut(self, width: int) -> None:
        """Drop the newest columns of a single prompt, so that `width` are left."""
        for layer in self.layers:
            layer.end = min(layer.end, layer.start + width)

    def insert(self, prefilled: "BatchedCache", num_rows: int = 1) -> None:
        """Append `num_rows` copies of a single prompt's cache as new rows."""
        more = max(prefilled.width - self.width, 0) if self.padding else 0
        self.padding = [padding + more for padding in self.padding]
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            layer.insert(source, num_rows)
        self.padding += [self.width - prefilled.width] * num_rows

    def remove(self, row: int) -> None:
        """Drop a row; the last row takes its place."""
        for layer in self.layers:
            layer.remove(row)
        self.padding[row] = self.padding[-1]
        self.padding.pop()
        self._trim()

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy rows to others, from their state before the call; for beams.

        A source and its destination have the same length.
        """
        for layer in self.layers:
            layer.copy_rows(sources, destinations)

    def clear(self) -> None:
        """Drop all rows, also after a failed forward pass."""
        self.padding = []
        for layer in self.layers:
            layer.clear()

    def _trim(self) -> None:
        """Hide the columns that no row uses any more."""
        unused = min(self.padding, default=self.width)
        if unused:
            self.padding = [padding - unused for padding in self.padding]
            for layer in self.layers:
                layer.start += unused


class BatchedLayer(Columns, CacheLayerMixin):
    """One layer's keys and values, each [row capacity, heads, column capacity, head size].

    Layers with a sliding window keep all columns too; their mask hides the old ones.
    """

    is_sliding = False

    def __init__(self, num_columns: int = 0) -> None:
        CacheLayerMixin.__init__(self)
        Columns.__init__(self, "keys", "values")
        self.num_columns = num_columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers of a prompt's cache, in its first forward pass."""
        self.num_rows = key_states.shape[0]
        num_columns = max(self.num_columns, key_states.shape[2])
        self.keys = make_buffer(key_states, self.num_rows, num_columns)
        self.values = make_buffer(value_states, self.num_rows, num_columns)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append columns to all rows; return all visible keys and values, as views.

        Args:
            key_states: [num_rows, heads, new columns, head size]
            value_states: [num_rows, heads, new columns, head size]; the head size may differ.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        num_new = key_states.shape[2]
        self.make_room(num_new)
        keys = self.keys.narrow(0, 0, self.num_rows)
        values = self.values.narrow(0, 0, self.num_rows)
        keys.narrow(2, self.end, num_new).copy_(key_states)
        values.narrow(2, self.end, num_new).copy_(value_states)
        self.end += num_new
        width = self.end - self.start
        return keys.narrow(2, self.start, width), values.narrow(2, self.start, width)

    def add_column(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a visible column; return all visible keys and values, as views."""
        self.make_room(1)
        self.end += 1
        rows, columns = slice(0, self.num_rows), slice(self.start, self.end)
        return self.keys[rows, :, columns], self.values[rows, :, columns]

    def insert(self, source: "BatchedLayer", num_rows: int) -> None:
        """Append `num_rows` copies of the source's only row."""
        seen = slice(source.start, source.end)
        self.insert_columns((source.keys[:, :, seen], source.values[:, :, seen]), num_rows)

    def get_seq_length(self) -> int:
        """Return the number of visible columns, for transformers."""
        return self.end - self.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of visible columns with the query's, and the offset of the first."""
        return self.end - self.start + query_length, 0

    def get_max_length(self) -> int:
        """Return -1, for no maximum: the buffers grow."""
        return -1
