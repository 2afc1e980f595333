"""Verification that a document is in a training set, without trust in the server.

The tree and its proofs are those of RFC 9162 (Certificate Transparency 2.0), section 2.1.
"""

from whence.proof import merkle
from whence.proof.merkle_tree import hash_leaf
from whence.v1.training_pb2 import GetInclusionProofResponse


def verify_inclusion(proof: GetInclusionProofResponse, root: bytes | str | None = None) -> bool:
    """Return whether the proof's leaf is in the tree with this root (section 2.1.3.2).

    Args:
        proof: result of `inclusion_proof`; compare `leaf_data` with the SHA-256 of the document's
            text if you have it.
        root: trusted Merkle root that was noted elsewhere, raw or as hex. The default is the
            proof's own root, which proves only that the proof is consistent.
    """
    wanted = proof.root if root is None else bytes.fromhex(root) if isinstance(root, str) else root
    return merkle.verify_inclusion(
        hash_leaf(proof.leaf_data),
        proof.leaf_index,
        proof.tree_size,
        proof.audit_path,
        wanted,
    )
