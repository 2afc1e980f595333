"""Buffers of all running sequences: a row for each, which end at the same column.

See `cache` for the layout. What a column holds for a row is up to the buffer: keys and values of
a position, or what else is kept of it.
"""

from collections.abc import Sequence

import torch

MIN_COLUMNS = 256
"""Memory that nothing is written to is not taken from the system."""


class Columns:
    """Buffers that grow by doubling, each [row capacity, heads, column capacity, ...].

    The visible part is rows [0, num_rows) and columns [start, end).

    Args:
        names: of the attributes that hold the buffers, once `is_initialized`.
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
            sources: for each buffer [1, heads, length, ...].
            num_rows: how many.
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
            # What earlier rows left behind may be NaN, and a masked weight of 0 times NaN is NaN.
            buffer[: self.num_rows, :, start : self.start] = 0
            buffer[self.num_rows : total, :, start:first] = 0
            buffer[self.num_rows : total, :, first : self.end] = source
        self.start = start
        self.num_rows = total

    def remove(self, row: int) -> None:
        """Move the last row into the given one's place."""
        last = self.num_rows - 1
        if row != last:
            for buffer in self._list_buffers():
                buffer[row, :, self.start : self.end] = buffer[last, :, self.start : self.end]
        self.num_rows = last

    def copy_rows(self, sources: Sequence[int], destinations: Sequence[int]) -> None:
        """Make each destination a copy of what its source was before."""
        device = self._list_buffers()[0].device
        copied = torch.tensor(sources, device=device)
        replaced = torch.tensor(destinations, device=device)
        for buffer in self._list_buffers():
            visible = buffer[:, :, self.start : self.end]
            visible.index_copy_(0, replaced, visible.index_select(0, copied))

    def clear(self) -> None:
        """Drop all rows and keeps the buffers."""
        self.num_rows = self.start = self.end = 0

    def make_room(self, num_columns: int) -> None:
        """See to it that so many more columns can be written."""
        if self.end + num_columns > self._count_capacity()[1]:
            self._move(self.num_rows, self.width + num_columns, first=0)

    def _list_buffers(self) -> list[torch.Tensor]:
        return [getattr(self, name) for name in self._names]

    def _count_capacity(self) -> tuple[int, int]:
        """How many (rows, columns) there is memory for."""
        shape = self._list_buffers()[0].shape
        return shape[0], shape[2]

    def _move(self, num_rows: int, num_columns: int, *, first: int) -> None:
        """Take the visible part over to new buffers, where it begins at column `first`.

        There is room for twice the columns asked for, so that copying is paid for by the steps
        in between, and it happens once for each doubling.
        """
        # Of rows no more than are there: many short ones may be followed by a few long ones.
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
    """An empty buffer for what is like [rows, heads, columns, ...]."""
    _, heads, _, *size = like.shape
    return like.new_empty(num_rows, heads, num_columns, *size)
