"""Roots and proofs of a Merkle tree that is stored in tiles (RFC 9162, section 2.1).

A tile of level 0 holds the hashes of 256 leaves, one of level 1 those of 256 full tiles of level 0,
and so on. A proof reads a few tiles, and every other node is computed from them.
"""

from collections.abc import Callable
from functools import partial

from whence.proof.merkle_tree import EMPTY_ROOT, compute_root, hash_node

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT

ReadTile = Callable[[int, int, int], list[bytes]]
"""Reads a tile by level, number and width: the hashes of its first `width` nodes."""


class TreeReader:
    """A tree of a fixed size; each tile is read once.

    Args:
        read_tile: reads a tile.
        size: number of leaves.
    """

    def __init__(self, read_tile: ReadTile, size: int) -> None:
        self._read_tile = read_tile
        self.size = size
        self._tiles: dict[tuple[int, int], list[bytes]] = {}

    def compute_root(self) -> bytes:
        """Return the root, 32 bytes."""
        return self._hash_range(0, self.size)

    def prove_inclusion(self, index: int) -> list[bytes]:
        """Return the siblings from a leaf up to the root (section 2.1.3.1).

        Raises:
            IndexError: the index is not that of a leaf.
        """
        if not 0 <= index < self.size:
            raise IndexError(f"leaf {index} of a tree of {self.size}")
        path, begin, end = [], 0, self.size
        while end - begin > 1:
            middle = begin + _split(end - begin)
            if index < middle:
                path.append(partial(self._hash_range, middle, end))
                end = middle
            else:
                path.append(partial(self._hash_range, begin, middle))
                begin = middle
        return [compute() for compute in reversed(path)]

    def prove_consistency(self, old_size: int) -> list[bytes]:
        """Return the proof that the tree of an old size only grew (section 2.1.4.1).

        Raises:
            IndexError: the tree was never of that size.
        """
        if not 0 <= old_size <= self.size:
            raise IndexError(f"size {old_size} of a tree of {self.size}")
        if old_size in {0, self.size}:
            return []
        path, begin, end, is_whole = [], 0, self.size, True
        while old_size < end:
            middle = begin + _split(end - begin)
            if old_size <= middle:
                path.append(partial(self._hash_range, middle, end))
                end = middle
            else:
                path.append(partial(self._hash_range, begin, middle))
                begin, is_whole = middle, False
        if not is_whole:
            path.append(partial(self._hash_range, begin, end))
        return [compute() for compute in reversed(path)]

    def _hash_range(self, begin: int, end: int) -> bytes:
        """Return the root over the leaves of a range that the tree's shape has."""
        if begin == end:
            return EMPTY_ROOT
        num_leaves = end - begin
        if num_leaves & (num_leaves - 1) == 0:
            return self._find_node(num_leaves.bit_length() - 1, begin)
        middle = begin + _split(num_leaves)
        return hash_node(self._hash_range(begin, middle), self._hash_range(middle, end))

    def _find_node(self, height: int, begin: int) -> bytes:
        """Return the root over 2 ** height leaves, computed from the tile with its top nodes."""
        level, above = divmod(height, TILE_HEIGHT)
        number = begin >> (level * TILE_HEIGHT)
        tile, place = divmod(number, TILE_WIDTH)
        key = level, tile
        if key not in self._tiles:
            num_nodes = self.size >> (level * TILE_HEIGHT)
            width = min(TILE_WIDTH, num_nodes - tile * TILE_WIDTH)
            self._tiles[key] = self._read_tile(level, tile, width)
        return compute_root(self._tiles[key][place : place + (1 << above)])


def _split(size: int) -> int:
    """Return the largest power of two below a size."""
    return 1 << ((size - 1).bit_length() - 1)
