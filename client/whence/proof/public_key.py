"""Public keys of statements: ECDSA on the curve P-256 with SHA-256."""

import base64
import binascii
import hashlib
from typing import Any

from whence.proof.envelope import Envelope, encode_for_signing
from whence.proof.faults import FormatError, ProofError

_MAX_PEM_BYTES = 8 << 10
_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
_P256 = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200")
"""Beginning of the SubjectPublicKeyInfo of every key on P-256; its point of 65 bytes follows."""
_INFO_BYTES = 91
MISSING = "checking signatures needs the package `cryptography`: pip install 'whence[proof]'"


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
        info = _read_pem(pem, what)
        self._key = _load(info, what)
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


def _read_pem(pem: str, what: str) -> bytes:
    """Return the SubjectPublicKeyInfo of a PEM."""
    text = pem.strip()
    if text.startswith(_BEGIN) and text.endswith(_END):
        body = "".join(text[len(_BEGIN) : -len(_END)].split())
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise FormatError(f"{what} is no public key in PEM, which begins with {_BEGIN!r}")


def _load(info: bytes, what: str) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ProofError(MISSING) from None
    # `serialization` would read it too, and takes three times as long to import.
    if info.startswith(_P256) and len(info) == _INFO_BYTES:
        try:
            point = info[len(_P256) :]
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        except ValueError:
            raise FormatError(f"{what} is no point on the curve P-256") from None
    raise FormatError(f"{what} is {_name_kind(info)}; statements are signed on the curve P-256")


def _name_kind(info: bytes) -> str:
    """Return which other kind of key it is, in words."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    try:
        key = load_der_public_key(info)
    except (ValueError, UnsupportedAlgorithm):
        return "no public key"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"a key on the curve {key.curve.name}"
    return "no elliptic-curve key"
