"""Cache of the keys and values of prefixes, so that a prompt's known beginning is not read again.

A system prompt is the beginning of many prompts, and each turn of a chat begins with the turn
before it and its answer. The keys and values of a position depend only on the tokens up to there.
They are therefore copied from the cache of a prompt, and of a sequence that ends, into blocks of a
pool, and from there into the caches of later prompts. Nothing is shared between running sequences.
"""

import logging
from collections.abc import Sequence

import torch

from whence_server.engines.transformers.cache import BatchedCache
from whence_server.engines.transformers.prefix_index import PrefixIndex

logger = logging.getLogger(__name__)

BLOCK_TOKENS = 16
"""Number of tokens of a block: a prefix is reused up to a multiple of it."""
MIN_BLOCKS = 256
"""First capacity of the pool in blocks; the system does not commit pages that are never written."""


class PrefixCache:
    """Pool of blocks of keys and values, with the least recently used blocks given up first.

    Args:
        max_tokens: maximum number of positions; rounded down to whole blocks.
        block_tokens: number of tokens of a block.
    """

    def __init__(self, max_tokens: int, block_tokens: int = BLOCK_TOKENS) -> None:
        self._block_tokens = block_tokens
        self._max_blocks = max_tokens // block_tokens
        self._index = PrefixIndex(self._max_blocks, block_tokens)
        self._pools: list[torch.Tensor] = []
        """Each layer's keys and then values, [blocks, heads, block's tokens, head size]."""

    @property
    def num_tokens(self) -> int:
        """Number of positions in use."""
        return self._index.num_used * self._block_tokens

    def read(self, namespace: str, token_ids: Sequence[int], cache: BatchedCache) -> int:
        """Append the columns of the longest cached prefix to the cache of a prompt.

        After a failure, which is logged, the prompt's cache is as before, and this cache is empty.

        Args:
            namespace: only prefixes that were written with the same namespace are read. Equal
                tokens with different weights, such as those of an adapter, have different ones.
            token_ids: the whole prompt.
            cache: cache of the prompt; may have columns already.

        Returns:
            Number of appended columns. The last token is never among them, as its logits are
            needed.
        """
        num_before = cache.width
        numbers = self._index.find(namespace, token_ids[:-1])
        num_new = len(numbers) * self._block_tokens - num_before
        if num_new <= 0:
            return 0
        try:
            self._append(numbers[num_before // self._block_tokens :], num_new, cache)
        except Exception:
            logger.exception("a cached prefix cannot be read; the prefix cache is emptied")
            self.clear()
            cache.cut(num_before)
            return 0
        return num_new

    def write(
        self, namespace: str, token_ids: Sequence[int], columns: Sequence[torch.Tensor]
    ) -> None:
        """Keep the whole blocks of a prefix that are not cached yet.

        After a failure, which is logged, this cache is empty.

        Args:
            namespace: see `read`.
            token_ids: tokens of the prefix.
            columns: keys and then values of each layer, [heads, tokens, head size].
        """
        first, numbers = self._index.add(namespace, token_ids)
        if not numbers:
            return
        begin = first * self._block_tokens
        try:
            self._copy([column[:, begin:] for column in columns], numbers)
        except Exception:
            logger.exception("a prefix cannot be cached; the prefix cache is emptied")
            self.clear()

    def clear(self) -> None:
        """Give up all blocks and their memory."""
        self._index.clear()
        self._pools.clear()

    def _append(self, numbers: Sequence[int], num_columns: int, cache: BatchedCache) -> None:
        """Append the last `num_columns` columns of some blocks to the cache of a prompt."""
        index = torch.tensor(numbers, device=self._pools[0].device)
        for layer, pools in enumerate(zip(self._pools[::2], self._pools[1::2], strict=True)):
            keys, values = (
                pool.index_select(0, index).transpose(0, 1).flatten(1, 2)[None, :, -num_columns:]
                for pool in pools
            )
            cache.update(keys, values, layer)

    def _copy(self, columns: Sequence[torch.Tensor], numbers: Sequence[int]) -> None:
        """Copy the first columns, as many as some blocks hold, into these blocks."""
        self._make_room(max(numbers) + 1, columns)
        index = torch.tensor(numbers, device=columns[0].device)
        for pool, column in zip(self._pools, columns, strict=True):
            blocks = column[:, : len(numbers) * self._block_tokens].unflatten(1, (len(numbers), -1))
            pool.index_copy_(0, index, blocks.transpose(0, 1))

    def _make_room(self, num_blocks: int, like: Sequence[torch.Tensor]) -> None:
        """Ensure that the pool has `num_blocks` blocks, with the heads of these columns."""
        if not self._pools:
            self._pools = [
                column.new_empty(0, column.shape[0], self._block_tokens, column.shape[2])
                for column in like
            ]
        capacity = len(self._pools[0])
        if num_blocks <= capacity:
            return
        capacity = min(max(num_blocks, 2 * capacity, MIN_BLOCKS), self._max_blocks)
        for i, old in enumerate(self._pools):
            # One after the other, so that only one of them is there twice.
            self._pools[i] = new = old.new_empty(capacity, *old.shape[1:])
            new[: len(old)] = old


def round_to_blocks(num_tokens: int) -> int:
    """Return the number of positions in as many whole blocks as fit into `num_tokens`."""
    return num_tokens - num_tokens % BLOCK_TOKENS
