"""Verification of proofs about Merkle trees (RFC 9162, sections 2.1.3 and 2.1.4)."""

from collections.abc import Sequence

from whence.proof.merkle_tree import EMPTY_ROOT, HASH_BYTES, hash_node

MAX_TREE_SIZE = 2**62
"""Number larger than any tree; a larger size is refused before anything is computed."""


def verify_inclusion(
    leaf_hash: bytes, index: int, size: int, path: Sequence[bytes], root: bytes
) -> bool:
    """Return whether a leaf is in the tree with this size and root (section 2.1.3.2).

    Args:
        leaf_hash: the leaf's hash, from `hash_leaf`.
        index: the leaf's index, from 0.
        size: number of leaves of the tree.
        path: hashes of the siblings from the leaf up to the root.
        root: root hash that was learnt from a trusted place.
    """
    if not (0 <= index < size <= MAX_TREE_SIZE and _are_hashes((leaf_hash, root), path)):
        return False
    node, last = leaf_hash, size - 1
    for sibling in path:
        if last == 0:
            return False
        if index & 1 or index == last:
            node = hash_node(sibling, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hash_node(node, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and node == root


def verify_consistency(
    old_size: int, old_root: bytes, size: int, root: bytes, path: Sequence[bytes]
) -> bool:
    """Return whether a tree only grew from its old to its new state (section 2.1.4.2).

    Args:
        old_size: number of leaves of the old tree; 0 is consistent with everything.
        old_root: root hash of the old tree.
        size: number of leaves of the new tree.
        root: root hash of the new tree.
        path: nodes of the proof; empty if the sizes are equal or the old one is 0.
    """
    if not (0 <= old_size <= size <= MAX_TREE_SIZE and _are_hashes((old_root, root), path)):
        return False
    if old_size == size:
        return not path and old_root == root
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    nodes = [old_root, *path] if old_size & (old_size - 1) == 0 else list(path)
    if not nodes:
        return False
    index, last = old_size - 1, size - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    old_node = node = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            return False
        if index & 1 or index == last:
            old_node, node = hash_node(sibling, old_node), hash_node(sibling, node)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hash_node(node, sibling)
        index, last = index >> 1, last >> 1
    return last == 0 and old_node == old_root and node == root


def _are_hashes(hashes: tuple[bytes, bytes], path: Sequence[bytes]) -> bool:
    """Return whether all are hashes; a path longer than any tree is high is refused unread."""
    return len(path) <= MAX_TREE_SIZE.bit_length() and all(
        len(node) == HASH_BYTES for node in (*hashes, *path)
    )
