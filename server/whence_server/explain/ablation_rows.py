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
        num_shared: number of its first tokens that the row before it has too.
    """

    kept: KeptRow
    operator: Operator
    token_ids: list[int]
    positions: list[int]
    visible: list[bool]
    num_shared: int


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
        self._segments = list(segments)
        self._segment_of = np.full(target.start, -1)
        for i, segment in enumerate(segments):
            self._segment_of[segment.start : segment.end] = i
        self._skips_hidden = skips_hidden

    def make(self, kept: KeptRow, operator: Operator, before: Row | None) -> Row:
        """Return a row.

        Args:
            kept: the segments that stay.
            operator: way in which the others are taken out.
            before: the row that was read before; None for none.
        """
        visible = (self._segment_of < 0) | kept[self._segment_of]
        visible[-1] |= not visible.any()
        if operator is Operator.HIDE and not self._skips_hidden:
            read = np.arange(len(visible))
        else:
            read = np.flatnonzero(visible)
        removes = operator is Operator.REMOVE
        return Row(
            kept,
            operator,
            self._ids[read].tolist(),
            (np.arange(len(read)) if removes else read).tolist(),
            visible[read].tolist(),
            self._count_shared(read, kept, operator, before),
        )

    def _count_shared(
        self, read: Any, kept: KeptRow, operator: Operator, before: Row | None
    ) -> int:
        if before is None or before.operator is not operator:
            return 0
        differing = np.flatnonzero(before.kept != kept)
        end = self._segments[differing[0]].start if len(differing) else len(self._ids)
        return int(np.searchsorted(read, end))


def order_rows(kept: Kept) -> list[int]:
    """Return the rows in an order in which successive ones share long beginnings."""
    return sorted(range(len(kept)), key=lambda i: kept[i].tobytes(), reverse=True)
