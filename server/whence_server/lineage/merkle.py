"""Merkle trees as in RFC 9162 (Certificate Transparency 2.0), section 2.1.

The RFC divides n leaves at the largest power of two below n. Pairing neighbours level by level,
with a last one that has no neighbour going up as it is, gives the same tree.
"""

import hashlib
from collections.abc import Iterable


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf (section 2.1.1)."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of a node with two children (section 2.1.1)."""
    return hashlib.sha256(b"\1" + left + right).digest()


class MerkleTree:
    """The tree over a list of leaves.

    Args:
        leaves: each leaf's data, in order.
    """

    def __init__(self, leaves: Iterable[bytes]) -> None:
        self._levels = [[leaf_hash(data) for data in leaves]]
        while len(self._levels[-1]) > 1:
            level = self._levels[-1]
            pairs = zip(level[::2], level[1::2], strict=False)
            above = [node_hash(left, right) for left, right in pairs]
            self._levels.append(above + level[len(above) * 2 :])

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> bytes:
        """The tree's root, 32 bytes; the hash of nothing where there are no leaves."""
        return self._levels[-1][0] if len(self) else hashlib.sha256().digest()

    def audit_path(self, index: int) -> list[bytes]:
        """Hashes of the siblings from a leaf up to the root (section 2.1.3.1).

        Raises:
            IndexError: there is no such leaf.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"leaf {index} of a tree of {len(self)}")
        path = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling])
            index //= 2
        return path
