"""Merkle trees over hashes of leaves (RFC 9162, Certificate Transparency 2.0, section 2.1)."""

import hashlib
from collections.abc import Iterable

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256().digest()
"""Root of a tree without leaves."""


def hash_leaf(data: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes (section 2.1.1)."""
    return hashlib.sha256(b"\0" + data).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """Return the hash of a node with two children, 32 bytes (section 2.1.1)."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Frontier:
    """Merkle tree that grows by leaves at its end; it keeps one hash for each bit of its size.

    Attributes:
        size: number of leaves.
    """

    __slots__ = ("_roots", "size")

    def __init__(self) -> None:
        self.size = 0
        self._roots: list[bytes] = []
        """Roots of the complete subtrees, the largest first."""

    def add(self, leaf_hash: bytes) -> None:
        """Add a leaf by its hash."""
        node, size = leaf_hash, self.size
        while size & 1:
            node = hash_node(self._roots.pop(), node)
            size >>= 1
        self._roots.append(node)
        self.size += 1

    @property
    def root(self) -> bytes:
        """Root hash, 32 bytes."""
        if not self._roots:
            return EMPTY_ROOT
        root = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            root = hash_node(left, root)
        return root


def compute_root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Return the root of the tree over leaves that are given by their hashes."""
    frontier = Frontier()
    for leaf_hash in leaf_hashes:
        frontier.add(leaf_hash)
    return frontier.root
