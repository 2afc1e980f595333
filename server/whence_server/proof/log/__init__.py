"""The transparency log: an append-only Merkle tree over the digests of signed statements."""
