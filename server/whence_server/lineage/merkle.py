"""Merkle trees as in RFC 9162 (Certificate Transparency 2.0), section 2.1.

The RFC splits n leaves at the largest power of two below n. Pairing siblings level by level, with a
last node without a sibling moved up unchanged, gives the same tree.
"""

import hashlib
from collections.abc import Iterable

from whence.proof.merkle_tree import hash_leaf, hash_node
from whence_server.lineage.chain import HASH_BYTES

__all__ = ["MerkleTree", "hash_leaf", "hash_node"]


class MerkleTree:
    """Merkle tree over a list of leaves; it takes 64 bytes of memory for each leaf.

    Args:
        leaves: each leaf's data, in order.
    """

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._levels = [b"".join(map(hash_leaf, leaves))]
        while len(self._levels[-1]) > HASH_BYTES:
            self._levels.append(_compute_parents(self._levels[-1]))

    def __len__(self) -> int:
        return len(self._levels[0]) // HASH_BYTES

    @property
    def root(self) -> bytes:
        """Root hash, 32 bytes; the hash of the empty string for a tree without leaves."""
        return self._levels[-1] if len(self) else hashlib.sha256().digest()

    def compute_audit_path(self, index: int) -> list[bytes]:
        """Return the hashes of the siblings from a leaf up to the root (section 2.1.3.1).

        Raises:
            IndexError: the index is not that of a leaf.
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


def _compute_parents(level: bytes) -> bytes:
    """Return the parents of a level's nodes; a last node without a sibling moves up unchanged."""
    pair = 2 * HASH_BYTES
    end = len(level) // pair * pair
    parents = (
        hash_node(level[begin : begin + HASH_BYTES], level[begin + HASH_BYTES : begin + pair])
        for begin in range(0, end, pair)
    )
    return b"".join(parents) + level[end:]
