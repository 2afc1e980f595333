"""Master keys: they wrap the data keys of generations."""

import base64
import binascii
import hmac
import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12
_MAX_KEYS = 64


class MasterKey:
    """A master key of 256 bits.

    Wrapping is AES-256-GCM with a random nonce, under HMAC-SHA-256(the master key, "whence master
    key wrapping 1"). The standard allows 2**32 of them (NIST SP 800-38D, section 8.3).

    Attributes:
        id: 16 hex digits by which keys are told apart: the beginning of HMAC-SHA-256(the master
            key, "whence master key id 1"), which reveals nothing of the key.
    """

    __slots__ = ("_cipher", "id")

    def __init__(self, secret: bytes) -> None:
        self.id = hmac.digest(secret, b"whence master key id 1", "sha256")[:8].hex()
        self._cipher = AESGCM(hmac.digest(secret, b"whence master key wrapping 1", "sha256"))

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Encrypt a key; `context` says what it is for, and is needed to decrypt it."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Decrypt a key.

        Raises:
            ValueError: another key wrapped it, or it was changed.
        """
        try:
            return self._cipher.decrypt(wrapped[:NONCE_BYTES], wrapped[NONCE_BYTES:], context)
        except InvalidTag:
            raise ValueError("the wrapped key was changed") from None


def make_master_key() -> str:
    """Return a new random master key, in base64."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def parse_master_keys(text: str) -> tuple[MasterKey, ...]:
    """Parse one key a line, the newest first; empty lines and those that begin with # are skipped.

    Raises:
        ValueError: there is none, or a line is not a key; the message does not quote it.
    """
    keys: list[MasterKey] = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            keys.append(MasterKey(_decode(stripped, number)))
    if not keys:
        raise ValueError("there is no key; expected 32 bytes as base64 or as 64 hex digits")
    if len(keys) > _MAX_KEYS:
        raise ValueError(f"there are {len(keys)} keys; at most {_MAX_KEYS} can be given")
    _check_different(keys)
    return tuple(keys)


def _decode(line: str, number: int) -> bytes:
    try:
        secret = bytes.fromhex(line) if len(line) == 2 * KEY_BYTES else _decode_base64(line)
    except (ValueError, binascii.Error):
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ValueError(
            f"line {number} is no key; expected 32 bytes as base64 or as 64 hex digits, as "
            "`whence-server key new` writes them"
        )
    return secret


def _decode_base64(line: str) -> bytes:
    return base64.b64decode(line, validate=True)


def _check_different(keys: Sequence[MasterKey]) -> None:
    if len({key.id for key in keys}) < len(keys):
        raise ValueError("the same key is given twice")
