"""A witness that is away, so that a server has the metrics of one."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from whence.proof.notes import COSIGNATURE, NoteSigner

_KEY = NoteSigner("example.com/w", Ed25519PrivateKey.from_private_bytes(b"a" * 32), COSIGNATURE).key
# Nobody listens on the port of "discard".
AWAY_WITNESS = ("--witness", f"http://127.0.0.1:9={_KEY}")
"""Flags of a server."""
