"""Plan of the passes over many contexts that share beginnings.

Rows stand in an order in which successive ones share long beginnings. A pass over few tokens costs
nearly as much as one over `OVERHEAD_TOKENS` more, because all weights are read: so rows with little
left to read are read together, after the beginning that all of them share.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

OVERHEAD_TOKENS = 24
"""Tokens that take as long as a pass takes besides its tokens, as measured for SmolLM2-135M."""
MOST_ROWS = 16
MOST_TOKENS = 512
"""Most tokens of a pass over several rows."""
MOST_COLUMNS = 4096
"""Most columns of the cache of several rows together; bounds the memory."""
MOST_LOGITS = 1 << 25


class RowSize(NamedTuple):
    """Size of a context.

    Attributes:
        length: number of its tokens.
        num_shared: number of its first tokens that the row before it has too.
    """

    length: int
    num_shared: int


class Batch(NamedTuple):
    """Rows that are read in one pass.

    Attributes:
        begin: the first row.
        end: the row after the last one.
        num_prefix: number of their first tokens that are in the cache when the pass begins.
        num_kept: number of these that are in the cache already; the others take a pass before.
        num_tokens: number of tokens that are read, with that pass and with padding.
    """

    begin: int
    end: int
    num_prefix: int
    num_kept: int
    num_tokens: int


def plan_batches(
    rows: Sequence[RowSize], num_after: int, vocabulary_size: int, *, together: bool
) -> list[Batch]:
    """Return the batches that cost least, as far as one can tell from row to row.

    Args:
        rows: sizes of the rows, in their order.
        num_after: number of tokens that are read after each row.
        vocabulary_size: V, which bounds the logits of a pass.
        together: false to read every row alone.
    """
    best: list[tuple[int, int, Batch | None]] = [(0, rows[0].num_shared, None)]
    costs: list[list[tuple[int, int, Batch]]] = [[] for _ in rows]
    for begin in range(len(rows)):
        cost, path, _ = best[begin]
        for batch, own in _list_batches(rows, begin, path, num_after, vocabulary_size):
            path_after = rows[begin].length if batch.end == begin + 1 else batch.num_prefix
            costs[batch.end - 1].append((cost + own, path_after, batch))
            if not together:
                break
        best.append(min(costs[begin], key=lambda each: each[0]))
    batches = []
    end = len(rows)
    while (last := best[end][2]) is not None:
        batches.append(last)
        end = last.begin
    return batches[::-1]


def _list_batches(
    rows: Sequence[RowSize], begin: int, path: int, num_after: int, vocabulary_size: int
) -> Iterator[tuple[Batch, int]]:
    """Yield the batches that begin with a row, with their costs in tokens."""
    first = rows[begin]
    kept = min(path, first.num_shared, first.length - 1)
    num_read = first.length - kept + num_after
    yield Batch(begin, begin + 1, kept, kept, num_read), OVERHEAD_TOKENS + num_read
    prefix = shortest = longest = first.length
    prefix -= 1
    for end in range(begin + 2, min(begin + MOST_ROWS, len(rows)) + 1):
        length, num_shared = rows[end - 1]
        prefix = min(prefix, num_shared, length - 1)
        shortest, longest = min(shortest, length), max(longest, length)
        num_rows = end - begin
        width = longest - prefix + num_after
        num_logits = min(longest - shortest, num_rows - 1) + 1 + num_after
        if (
            num_rows * width > MOST_TOKENS
            or num_rows * (prefix + width) > MOST_COLUMNS
            or num_rows * num_logits * vocabulary_size > MOST_LOGITS
        ):
            return
        kept = min(path, first.num_shared, prefix)
        num_read = prefix - kept + num_rows * width
        passes = 1 + (prefix > kept)
        yield Batch(begin, end, prefix, kept, num_read), passes * OVERHEAD_TOKENS + num_read
