"""Verification that a document is in a training set, without trust in the server.

The tree and its proofs are those of RFC 9162 (Certificate Transparency 2.0), section 2.1.
"""

import hashlib

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
    if proof.leaf_index >= proof.tree_size:
        return False
    index, last = proof.leaf_index, proof.tree_size - 1
    node = hashlib.sha256(b"\0" + proof.leaf_data).digest()
    for sibling in proof.audit_path:
        if last == 0:
            return False
        if index & 1 or index == last:
            node = hashlib.sha256(b"\1" + sibling + node).digest()
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            node = hashlib.sha256(b"\1" + node + sibling).digest()
        index, last = index >> 1, last >> 1
    return last == 0 and node == wanted
