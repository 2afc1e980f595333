"""Merkle trees and inclusion proofs against RFC 9162's own recursive definition."""

import hashlib

import pytest

from whence_server.lineage.merkle import MerkleTree


def root_of(leaves: list[bytes]) -> bytes:
    """MTH of section 2.1.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + root_of(leaves[:k]) + root_of(leaves[k:])).digest()


def path_of(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if index < k:
        return [*path_of(index, leaves[:k]), root_of(leaves[k:])]
    return [*path_of(index - k, leaves[k:]), root_of(leaves[:k])]


@pytest.mark.parametrize("num_leaves", [*range(18), 100, 257])
def test_root_and_audit_paths_equal_those_of_rfc_9162(num_leaves: int) -> None:
    leaves = [hashlib.sha256(b"%d" % number).digest() for number in range(num_leaves)]
    tree = MerkleTree(leaves)
    assert (len(tree), tree.root) == (num_leaves, root_of(leaves))
    for index in range(num_leaves):
        assert tree.compute_audit_path(index) == path_of(index, leaves)


def test_root_equals_certificate_transparencys_test_vector() -> None:
    # The test vectors of Certificate Transparency's reference implementations.
    leaves = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657"]
    leaves.append("606162636465666768696a6b6c6d6e6f")
    tree = MerkleTree(map(bytes.fromhex, leaves))
    assert tree.root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def test_audit_path_of_a_missing_leaf_is_refused() -> None:
    tree = MerkleTree([b"one"])
    for index in (-1, 1):
        with pytest.raises(IndexError, match=f"leaf {index} of a tree of 1"):
            tree.compute_audit_path(index)
