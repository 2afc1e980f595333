"""Public keys of statements: ECDSA on the curve P-256 with SHA-256."""

import hashlib
from typing import Any

from whence.proof.envelope import Envelope, encode_for_signing
from whence.proof.faults import FormatError, ProofError

_MAX_PEM_BYTES = 8 << 10


class PublicKey:
    """A public key that checks signatures.

    Attributes:
        key_id: SHA-256 of its SubjectPublicKeyInfo, in hex: the `keyid` of its signatures.
        pem: the key as PEM.
    """

    def __init__(self, pem: str, what: str = "the public key") -> None:
        """Read a key.

        Args:
            pem: the key as PEM.
            what: name of the key for errors.

        Raises:
            FormatError: it is no PEM of a public key on the curve P-256.
            ProofError: the package `cryptography` is missing.
        """
        if len(pem) > _MAX_PEM_BYTES:
            raise FormatError(f"{what} has {len(pem):,} characters; a key has fewer than 8,192")
        self._key: Any = _load(pem, what)
        serialization = _import_cryptography()
        info = self._key.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.key_id = hashlib.sha256(info).hexdigest()
        self.pem = pem

    def has_signed(self, envelope: Envelope) -> bool:
        """Return whether an envelope has a valid signature of this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.hashes import SHA256

        signed = encode_for_signing(envelope.payload_type, envelope.payload)
        for signature in envelope.signatures:
            if signature.key_id != self.key_id:
                continue
            try:
                self._key.verify(signature.value, signed, ec.ECDSA(SHA256()))
            except InvalidSignature:
                return False
            return True
        return False


def _load(pem: str, what: str) -> Any:
    serialization = _import_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise FormatError(
            f"{what} is no public key in PEM: it begins with '-----BEGIN PUBLIC KEY-----'"
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FormatError(f"{what} is no elliptic-curve key; statements are signed on P-256")
    if not isinstance(key.curve, ec.SECP256R1):
        raise FormatError(
            f"{what} is on the curve {key.curve.name}; statements are signed on P-256"
        )
    return key


def _import_cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise ProofError(
            "checking signatures needs the package `cryptography`: pip install 'whence[proof]'"
        ) from None
    return serialization
