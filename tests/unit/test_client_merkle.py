"""Inclusion proofs, compared with a literal implementation of RFC 9162."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lineage_records import merkle_root

from whence import verify_inclusion
from whence.v1.training_pb2 import GetInclusionProofResponse


def path(index: int, leaves: list[bytes]) -> list[bytes]:
    """Return the audit path by the recursive definition of section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if index < k:
        return [*path(index, leaves[:k]), merkle_root(leaves[k:])]
    return [*path(index - k, leaves[k:]), merkle_root(leaves[:k])]


def proof_of(index: int, leaves: list[bytes]) -> GetInclusionProofResponse:
    return GetInclusionProofResponse(
        leaf_index=index,
        tree_size=len(leaves),
        leaf_data=leaves[index],
        audit_path=path(index, leaves),
        root=merkle_root(leaves),
    )


def leaves_of(num_leaves: int) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(num_leaves)]


def test_every_leaf_of_every_small_tree_is_proven() -> None:
    for num_leaves in range(1, 40):
        leaves = leaves_of(num_leaves)
        for index in range(num_leaves):
            proof = proof_of(index, leaves)
            assert verify_inclusion(proof)
            assert verify_inclusion(proof, merkle_root(leaves))
            assert verify_inclusion(proof, merkle_root(leaves).hex())


@given(st.data())
def test_changed_proofs_are_refused(data: st.DataObject) -> None:
    num_leaves = data.draw(st.integers(2, 40))
    index = data.draw(st.integers(0, num_leaves - 1))
    proof = proof_of(index, leaves_of(num_leaves))
    change = data.draw(
        st.sampled_from(["leaf", "index", "size", "sibling", "less", "more", "root"])
    )
    if change == "leaf":
        proof.leaf_data = b"\0" * 32
    elif change == "index":
        proof.leaf_index = data.draw(st.integers(0, 60).filter(lambda i: i != index))
    elif change == "size":
        # A leaf that such a tree does not have. (Of a larger one, the path may be the same.)
        proof.tree_size = data.draw(st.integers(0, index))
    elif change == "sibling":
        which = data.draw(st.integers(0, len(proof.audit_path) - 1))
        proof.audit_path[which] = b"\1" * 32
    elif change == "less":
        del proof.audit_path[data.draw(st.integers(0, len(proof.audit_path) - 1))]
    elif change == "more":
        proof.audit_path.append(b"\2" * 32)
    else:
        proof.root = b"\3" * 32
    assert not verify_inclusion(proof)


@pytest.mark.parametrize("root", [b"", "", "00" * 32])
def test_the_given_root_counts_and_not_the_proofs_own(root: bytes | str) -> None:
    assert not verify_inclusion(proof_of(1, leaves_of(3)), root)
