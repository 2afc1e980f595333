"""Contexts of which segments are taken out, as a model reads them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from whence_server.explain.operators import Operator
from whence_server.explain.segments import Segment
from whence_server.explain.target import Target

Kept = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
"""Rows of segments, [rows, segments]: true for those that stay."""
KeptRow = np.ndarray[Any, np.dtype[np.bool_]]


class Row(NamedTuple):
    """A context as a model reads it.

    Attributes:
        kept: the segments that stay.
        operator: way in which the others are taken out.
        token_ids: tokens that are read.
        positions: their positions, which need not be successive.
        visible: false for tokens that are read and hidden.
    """

    kept: KeptRow
    operator: Operator
    token_ids: list[int]
    positions: list[int]
    visible: list[bool]

    def cut(self, length: int) -> "Row":
        """Return the row's first tokens."""
        return self._replace(
            token_ids=self.token_ids[:length],
            positions=self.positions[:length],
            visible=self.visible[:length],
        )


class RowMaker:
    """Maker of rows of a target's context.

    If nothing of the context would be left, the token before the span stays: a model needs one.

    Args:
        target: what is explained.
        segments: at least one, checked.
        skips_hidden: true if hidden tokens need not be read.
    """

    def __init__(self, target: Target, segments: Sequence[Segment], *, skips_hidden: bool) -> None:
        self._ids = np.array(target.context)
        self._starts = [segment.start for segment in segments]
        self._segment_of = np.full(target.start, -1)
        for i, segment in enumerate(segments):
            self._segment_of[segment.start : segment.end] = i
        self._skips_hidden = skips_hidden

    def make(self, kept: KeptRow, operator: Operator) -> Row:
        """Return the row of the segments that stay, with the others taken out."""
        visible = self._see(kept)
        read = self._list_read(visible, operator)
        removes = operator is Operator.REMOVE
        return Row(
            kept,
            operator,
            self._ids[read].tolist(),
            (np.arange(len(read)) if removes else read).tolist(),
            visible[read].tolist(),
        )

    def count_shared(self, row: Row, before: Row | None) -> int:
        """Return the number of a row's first tokens that a row before it has too."""
        if before is None or before.operator is not row.operator:
            return 0
        differing = np.flatnonzero(before.kept != row.kept)
        end = self._starts[differing[0]] if len(differing) else len(self._ids)
        read = self._list_read(self._see(row.kept), row.operator)
        return min(int(np.searchsorted(read, end)), len(before.token_ids))

    def _see(self, kept: KeptRow) -> KeptRow:
        visible: KeptRow = (self._segment_of < 0) | kept[self._segment_of]
        visible[-1] |= not visible.any()
        return visible

    def _list_read(self, visible: KeptRow, operator: Operator) -> "np.ndarray[Any, Any]":
        if operator is Operator.HIDE and not self._skips_hidden:
            return np.arange(len(visible))
        return np.flatnonzero(visible)


def order_rows(kept: Kept) -> list[int]:
    """Return the rows in an order in which successive ones share long beginnings."""
    return sorted(range(len(kept)), key=lambda i: kept[i].tobytes(), reverse=True)
