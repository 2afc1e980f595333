"""The hash chain over a training run's record; see `LineageEntry` in training.proto.

    hash_0 = SHA-256("whence lineage v1" || training run id)
    hash_i = SHA-256(hash_(i-1) || SHA-256(event_i))

The chain reveals events that were changed, removed, inserted or reordered. It does not reveal that
the newest events were removed, or that somebody with write access recomputed every hash: compare
the newest hash with a copy that is kept elsewhere for that.
"""

import hashlib

HASH_BYTES = 32
_CHECK_BYTES = 8


def compute_genesis_hash(training_run_id: str) -> bytes:
    """Return the hash before a run's first event, 32 bytes."""
    return hashlib.sha256(b"whence lineage v1" + training_run_id.encode()).digest()


def compute_check(event: bytes) -> int:
    """Return the first 64 bits of SHA-256(event), by which a changed entry is detected.

    It saves memory in an index of many entries. About 2^64 hash computations suffice to construct
    another event with the same 64 bits.
    """
    return int.from_bytes(hashlib.sha256(event).digest()[:_CHECK_BYTES], "big")


def compute_next_hash(previous: bytes, event: bytes) -> bytes:
    """Return the chain's hash after one more event, 32 bytes."""
    return hashlib.sha256(previous + hashlib.sha256(event).digest()).digest()
