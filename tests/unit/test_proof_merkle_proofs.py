"""Merkle proofs against the definitions of RFC 9162, written as it writes them."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whence.proof.merkle import verify_consistency, verify_inclusion
from whence.proof.merkle_tree import EMPTY_ROOT, compute_root, hash_leaf
from whence_server.proof.log.tree import TILE_HEIGHT, TILE_WIDTH, TreeReader


def mth(leaves: list[bytes]) -> bytes:
    """Merkle tree hash, section 2.1.1."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = largest_power_below(len(leaves))
    return hashlib.sha256(b"\1" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    """Inclusion proof, section 2.1.3.1."""
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: list[bytes], *, whole: bool) -> list[bytes]:
    """Consistency proof, section 2.1.4.1."""
    if m == len(leaves):
        return [] if whole else [mth(leaves)]
    k = largest_power_below(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], whole=whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], whole=False), mth(leaves[:k])]


def largest_power_below(n: int) -> int:
    k = 1
    while 2 * k < n:
        k *= 2
    return k


def make_leaves(num: int) -> list[bytes]:
    return [number.to_bytes(4, "big") for number in range(num)]


def make_reader(leaves: list[bytes]) -> TreeReader:
    levels = [[hash_leaf(leaf) for leaf in leaves]]
    while len(levels[-1]) >= TILE_WIDTH:
        below = levels[-1]
        whole = len(below) >> TILE_HEIGHT
        levels.append(
            [compute_root(below[i * TILE_WIDTH : (i + 1) * TILE_WIDTH]) for i in range(whole)]
        )

    def read(level: int, number: int, width: int) -> list[bytes]:
        found = levels[level][number * TILE_WIDTH : number * TILE_WIDTH + width]
        assert len(found) == width
        return found

    return TreeReader(read, len(leaves))


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 9, 255, 256, 257, 511, 512, 700])
def test_root_and_inclusion_proofs_are_those_of_the_rfc(size):
    leaves = make_leaves(size)
    reader, root = make_reader(leaves), mth(leaves)
    assert reader.compute_root() == root
    assert compute_root(map(hash_leaf, leaves)) == root
    for index in {0, 1, size // 2, size - 2, size - 1} & set(range(size)):
        proof = reader.prove_inclusion(index)
        assert proof == path(index, leaves)
        leaf = hash_leaf(leaves[index])
        assert verify_inclusion(leaf, index, size, proof, root)
        assert not verify_inclusion(hash_leaf(b"other"), index, size, proof, root)
        assert not verify_inclusion(leaf, index, size, [*proof, root], root)
        assert not verify_inclusion(leaf, index, size, proof[:-1], root) or not proof
        if size > 1:
            other = (index + 1) % size
            assert not verify_inclusion(leaf, other, size, proof, root)


@settings(max_examples=150, deadline=None)
@given(size=st.integers(1, 600), data=st.data())
def test_consistency_proofs_are_those_of_the_rfc(size, data):
    old = data.draw(st.integers(1, size))
    leaves = make_leaves(size)
    proof = make_reader(leaves).prove_consistency(old)
    assert proof == subproof(old, leaves, whole=True)
    old_root, root = mth(leaves[:old]), mth(leaves)
    assert verify_consistency(old, old_root, size, root, proof)
    if old < size:
        other = mth([*leaves[: old - 1], b"other"])
        assert not verify_consistency(old, other, size, root, proof)
        assert not verify_consistency(old, old_root, size, old_root, proof)
        assert not verify_consistency(old, old_root, size, root, [*proof, root])
        assert not verify_consistency(old, old_root, size, root, proof[1:])
        assert not verify_consistency(size, root, old, old_root, proof)
    else:
        assert not verify_consistency(old, old_root, size, root, [root])


def test_exchanged_leaves_give_another_root_and_no_proof():
    leaves = make_leaves(300)
    changed = leaves.copy()
    changed[3], changed[299] = changed[299], changed[3]
    assert mth(leaves) != mth(changed)
    proof = make_reader(changed).prove_consistency(200)
    assert not verify_consistency(200, mth(leaves[:200]), 300, mth(changed), proof)


def test_empty_trees_are_consistent_with_everything():
    root = mth(make_leaves(5))
    assert verify_consistency(0, EMPTY_ROOT, 5, root, [])
    assert verify_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    assert not verify_consistency(0, root, 5, root, [])
    assert not verify_consistency(0, EMPTY_ROOT, 5, root, [root])


@pytest.mark.parametrize(
    ("index", "size", "proof"),
    [
        (-1, 3, []),
        (3, 3, []),
        (0, 2**63, []),
        (2**70, 2**71, []),
        (0, 2, [b"short"]),
        (0, 2, [bytes(32)] * 1_000_000),
        (0, 1, [bytes(32)]),
    ],
)
def test_proofs_of_impossible_shape_are_refused(index, size, proof):
    root = mth([b"a"])
    assert not verify_inclusion(hash_leaf(b"a"), index, size, proof, root)
    assert not verify_consistency(index + 1, root, size, root, proof or [b"x"])


def test_proofs_of_leaves_that_are_not_there_are_errors():
    reader = make_reader(make_leaves(4))
    with pytest.raises(IndexError):
        reader.prove_inclusion(4)
    with pytest.raises(IndexError):
        reader.prove_consistency(5)
