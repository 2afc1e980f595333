"""Buffers with a row for each running sequence; all rows end at the same column.

`cache` documents the layout. A column holds data of one position, such as keys and values.
"""

from collections.abc import Sequence

import torch

MIN_COLUMNS = 256
"""Smallest capacity in columns; the system does not commit pages that are never written."""


class Columns:
    """Buffers that grow by doubling, each [row capacity, heads, column capacity, ...].

    The visible part is rows [0, num_rows) and columns [start, end).

    Args:
        names: names of the attributes that hold the buffers, once `is_initialized`.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self.is_initialized = False
        self.num_rows = 0
        self.start = 0
        self.end = 0

    @property
    def width(self) -> int:
        """Number of visible columns."""
        return self.end - self.start

    def insert_columns(self, sources: Sequence[torch.Tensor], num_rows: int) -> None:
        """Append `num_rows` copies of one row.

        Args:
            sources: for each buffer, the row [1, heads, length, ...].
            num_rows: number of copies.
        """
        length = sources[0].shape[2]
        total = self.num_rows + num_rows
        if not self.is_initialized:
            columns = max(2 * length, MIN_COLUMNS)
            for name, source in zip(self._names, sources, strict=True):
                setattr(self, name, make_buffer(source, total, columns))
            self.is_initialized = True
        if self.num_rows == 0:
            self.start = self.end = min(length, self._count_capacity()[1])
        widest = max(length, self.width)
        if total > self._count_capacity()[0] or self.end < length:
            self._move(total, widest, first=widest - self.width)
        start = self.end - widest
        first = self.end - length
        for buffer, source in zip(self._list_buffers(), sources, strict=True):
            # Old content may be NaN, and a masked weight of 0 times NaN is NaN.
            buffer[: self.num_rows, :, start : self.start] = 0
            buffer[self.num_rows : total, :, start:first] = 0
            buffer[self.num_rows : total, :, first : self.end] = source
        self.start = start
        self.num_rows = total

    def remove(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = self.num_rows - 1
        if row != last:
            for buffer in self._list_buffers():
                buffer[row, :, self.start : self.end] = buffer[last, :, self.start : self.end]
        self.num_rows = last

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Copy rows to others, from their state before the call."""
        device = self._list_buffers()[0].device
        copied = torch.tensor(sources, device=device)
        replaced = torch.tensor(destinations, device=device)
        for buffer in self._list_buffers():
            visible = buffer[:, :, self.start : self.end]
            visible.index_copy_(0, replaced, visible.index_select(0, copied))

    def clear(self) -> None:
        """Drop all rows and keep the buffers."""
        self.num_rows = self.start = self.end = 0

    def make_room(self, num_columns: int) -> None:
        """Ensure capacity for `num_columns` more columns."""
        if self.end + num_columns > self._count_capacity()[1]:
            self._move(self.num_rows, self.width + num_columns, first=0)

    def _list_buffers(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in self._names]

    def _count_capacity(self) -> tuple[int, int]:
        """Return the capacity (rows, columns)."""
        shape = self._list_buffers()[0].shape
        return shape[0], shape[2]

    def _move(self, num_rows: int, num_columns: int, *, first: int) -> None:
        """Move the visible part to new buffers, where it begins at column `first`.

        The new buffers have twice the columns needed, so that the cost of copying is amortised.
        """
        # Rows are not doubled: many short rows may be followed by a few long ones.
        rows = 1 << (num_rows - 1).bit_length()
        columns = max(2 * num_columns, MIN_COLUMNS)
        end = first + self.width
        for name in self._names:
            old = getattr(self, name)
            new = make_buffer(old, rows, columns)
            new[: self.num_rows, :, first:end] = old[: self.num_rows, :, self.start : self.end]
            setattr(self, name, new)
        self.start, self.end = first, end


def make_buffer(like: torch.Tensor, num_rows: int, num_columns: int) -> torch.Tensor:
    """Return an uninitialised buffer; `like` is [rows, heads, columns, ...]."""
    _, heads, _, *size = like.shape
    return like.new_empty(num_rows, heads, num_columns, *size)
