"""The hash chain over a training run's record; see `LineageEntry` in training.proto.

    hash_0 = SHA-256("whence lineage v1" || training run id)
    hash_i = SHA-256(hash_(i-1) || SHA-256(event_i))

It finds an event that was changed, removed, inserted or moved. It cannot find that the newest
were cut off, nor that somebody with write access computed it anew: for that its newest hash has
to be known elsewhere.
"""

import hashlib

HASH_BYTES = 32
_CHECK_BYTES = 8


def genesis(training_run_id: str) -> bytes:
    """The hash before a run's first event."""
    return hashlib.sha256(b"whence lineage v1" + training_run_id.encode()).digest()


def check_of(event: bytes) -> int:
    """The first 64 bits of SHA-256(event): tells a changed entry from the one that was read.

    For an index of many entries, where 32 bytes each are too much; whoever can compute 2^64
    hashes can make another event that has the same.
    """
    return int.from_bytes(hashlib.sha256(event).digest()[:_CHECK_BYTES], "big")


def next_hash(previous: bytes, event: bytes) -> bytes:
    """The chain's hash after one more event."""
    return hashlib.sha256(previous + hashlib.sha256(event).digest()).digest()
