"""Signers of statements: private keys on the curve P-256."""

from typing import Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256

from whence.proof.envelope import Signature, encode_for_signing, make_envelope
from whence.proof.public_key import PublicKey

_ALGORITHM = ec.ECDSA(SHA256())


class Signer(Protocol):
    """Maker of signatures.

    Attributes:
        public: the public key.
    """

    public: PublicKey

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        """Return the signature of a DSSE payload."""


class PrivateKey:
    """Private key in memory.

    Attributes:
        public: its public key.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.public = PublicKey(pem.decode())

    @classmethod
    def generate(cls) -> "PrivateKey":
        """Return a new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    def sign(self, payload_type: str, payload: bytes) -> Signature:
        """Return the signature of a DSSE payload."""
        signed = encode_for_signing(payload_type, payload)
        return Signature(self.public.key_id, self._key.sign(signed, _ALGORITHM))

    def encode(self) -> bytes:
        """Return the private key as PEM (PKCS #8), without a password."""
        return self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def seal(payload_type: str, payload: bytes, *signers: Signer) -> bytes:
    """Return an envelope that all signers have signed."""
    signatures = [signer.sign(payload_type, payload) for signer in signers]
    return make_envelope(payload_type, payload, signatures)
