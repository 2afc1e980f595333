"""Merkle trees as in RFC 9162 (Certificate Transparency 2.0), section 2.1.

The RFC divides n leaves at the largest power of two below n. Pairing neighbours level by level,
with a last one that has no neighbour going up as it is, gives the same tree.
"""

import hashlib
from collections.abc import Iterable

from whence_server.lineage.chain import HASH_BYTES


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf (section 2.1.1)."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of a node with two children (section 2.1.1)."""
    return hashlib.sha256(b"\1" + left + right).digest()


class MerkleTree:
    """The tree over a list of leaves: 64 bytes of memory a leaf.

    Args:
        leaves: each leaf's data, in order.
    """

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._levels = [b"".join(map(leaf_hash, leaves))]
        while len(self._levels[-1]) > HASH_BYTES:
            self._levels.append(_level_above(self._levels[-1]))

    def __len__(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    @property
    def root(self) -> bytes:
        """The tree's root, 32 bytes; the hash of nothing where there are no leaves."""
        return self._levels[-1] if len(self) else hashlib.sha256().digest()

    def audit_path(self, index: int) -> list[bytes]:
        """Hash of the siblings from a leaf up to the root (section 2.1.3.1).

        Raises:
            IndexError: there is no such leaf.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"leaf {index} of a tree of {len(self)}")
        path = []
        for level in self._levels[:-1]:
            begin = (index ^ 1) * HASH_BYTES
            if begin < len(level):
                path.append(level[begin : begin + HASH_BYTES])
            index //= 2
        return path


def _level_above(level: bytes) -> bytes:
    """The parents of a level's nodes; a last one without a neighbour goes up as it is."""
    pair = 2 * HASH_BYTES
    end = len(level) // pair * pair
    parents = (
        node_hash(level[begin : begin + HASH_BYTES], level[begin + HASH_BYTES : begin + pair])
        for begin in range(0, end, pair)
    )
    return b"".join(parents) + level[end:]
