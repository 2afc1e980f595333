"""Index of the prefix cache: the blocks that hold a prefix, and the block to give up next.

A prefix is cached in blocks of equally many tokens. A block is found by its tokens and by the
blocks before it, so that equal tokens after different ones are in different blocks. The index
numbers the blocks and holds no tensors.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class NewBlocks(NamedTuple):
    """Blocks that were added for one prefix, and that the caller has to fill.

    Attributes:
        first: number of blocks of the prefix before them, which were cached already.
        numbers: numbers of the new blocks, in the order of their tokens.
    """

    first: int
    numbers: list[int]


class PrefixIndex:
    """Index of the cached blocks, by their tokens; the least recently used ones are given up first.

    A use of a block counts as a later use of the blocks before it. Therefore no block is given up
    before those that follow it, and every cached block can be found.

    Args:
        num_blocks: maximum number of blocks. They are numbered from 0, and a number is given to
            another block only when all are in use.
        block_tokens: number of tokens of a block.
    """

    def __init__(self, num_blocks: int, block_tokens: int) -> None:
        self._num_blocks = num_blocks
        self._block_tokens = block_tokens
        self._first: dict[bytes, _Block] = {}
        """First blocks of all prefixes, by their keys."""
        self._by_use: OrderedDict[_Block, None] = OrderedDict()
        """All blocks, the least recently used one first."""

    @property
    def num_used(self) -> int:
        """Number of blocks in use."""
        return len(self._by_use)

    def find(self, namespace: str, token_ids: Sequence[int]) -> list[int]:
        """Return the numbers of the blocks that hold the longest cached prefix; they count as used.

        Args:
            namespace: only prefixes that were added with the same namespace are found.
            token_ids: tokens of a prompt.
        """
        path = self._follow(self._split(namespace, token_ids))
        self._use(path)
        return [block.number for block in path]

    def add(self, namespace: str, token_ids: Sequence[int]) -> NewBlocks:
        """Add a prefix, as many of its whole blocks as the index can hold; they count as used.

        Args:
            namespace: see `find`.
            token_ids: tokens of the prefix; those after the last whole block are not added.
        """
        keys = self._split(namespace, token_ids)[: self._num_blocks]
        path = self._follow(keys)
        first = len(path)
        self._use(path)  # so that none of them is given up for a block that follows it
        for key in keys[first:]:
            path.append(self._make_block(path[-1].following if path else self._first, key))
        self._use(path)
        return NewBlocks(first, [block.number for block in path[first:]])

    def clear(self) -> None:
        """Remove all blocks."""
        self._first.clear()
        self._by_use.clear()

    def _split(self, namespace: str, token_ids: Sequence[int]) -> list[bytes]:
        """Return the key of each whole block."""
        num_whole = len(token_ids) // self._block_tokens
        rows = np.asarray(token_ids[: num_whole * self._block_tokens], np.int64)
        keys = [row.tobytes() for row in rows.reshape(num_whole, self._block_tokens)]
        return [keys[0] + namespace.encode(), *keys[1:]] if keys else []

    def _follow(self, keys: Sequence[bytes]) -> "list[_Block]":
        """Return the cached blocks with these keys, up to the first that is missing."""
        path: list[_Block] = []
        following = self._first
        for key in keys:
            block = following.get(key)
            if block is None:
                break
            path.append(block)
            following = block.following
        return path

    def _use(self, path: "Sequence[_Block]") -> None:
        for block in reversed(path):
            self._by_use.move_to_end(block)

    def _make_block(self, siblings: "dict[bytes, _Block]", key: bytes) -> "_Block":
        number = self.num_used if self.num_used < self._num_blocks else self._give_up()
        siblings[key] = block = _Block(siblings, key, number)
        self._by_use[block] = None
        return block

    def _give_up(self) -> int:
        """Remove the least recently used block, which no block follows; return its number."""
        block, _ = self._by_use.popitem(last=False)
        del block.siblings[block.key]
        return block.number


class _Block:
    """A block of a prefix.

    Attributes:
        siblings: all blocks that follow the same block, this one included, by their keys.
        key: its tokens; for the first block of a prefix, with the namespace.
        number: its number.
        following: the blocks that follow it, by their keys.
    """

    __slots__ = ("following", "key", "number", "siblings")

    def __init__(self, siblings: "dict[bytes, _Block]", key: bytes, number: int) -> None:
        self.siblings = siblings
        self.key = key
        self.number = number
        self.following: dict[bytes, _Block] = {}
