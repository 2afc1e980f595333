"""The hash chain over a training run's record; see `LineageEntry` in training.proto.

    hash_0 = SHA-256("whence lineage v1" || training run id)
    hash_i = SHA-256(hash_(i-1) || SHA-256(event_i))

It finds an event that was changed, removed, inserted or moved. It cannot find that the newest
were cut off, nor that somebody with write access computed it anew: for that its newest hash has
to be known elsewhere.
"""

import hashlib

HASH_BYTES = 32


def genesis(training_run_id: str) -> bytes:
    """The hash before a run's first event."""
    return hashlib.sha256(b"whence lineage v1" + training_run_id.encode()).digest()


def next_hash(previous: bytes, event: bytes) -> bytes:
    """The chain's hash after one more event."""
    return hashlib.sha256(previous + hashlib.sha256(event).digest()).digest()
