"""Leaves of a statement's Merkle tree: one for each entry of the generation before its end.

    salt_i  = HMAC-SHA256(leaf secret, "whence leaf 1" || i)         i: 8 bytes, big-endian, from 0
    leaf_i  = salt_i || kind || entry                                kind: one byte
    hash_i  = SHA-256(0x00 || leaf_i)                                RFC 9162, section 2.1.1

The salts differ, so that one leaf can be shown without a hint at any other: who has only a hash
cannot test a guess at the entry.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence

SECRET_BYTES = SALT_BYTES = 32
KINDS = {"started": 1, "prompt_step": 2, "step": 3, "beam_round": 4}
"""Numbers of the kinds of entries, by their names in bundles."""
KIND_NAMES = {number: name for name, number in KINDS.items()}

_SALT, _PROMPT = b"whence leaf 1", b"whence prompt 1"


def derive_salt(secret: bytes, index: int) -> bytes:
    """Return the salt of a leaf, 32 bytes.

    Args:
        secret: leaf secret of the generation.
        index: index of the leaf, from 0: the entry's offset minus 1.
    """
    return hmac.digest(secret, _SALT + index.to_bytes(8, "big"), "sha256")


def hash_entry(salt: bytes, kind: int, payload: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes.

    Args:
        salt: salt of the leaf.
        kind: number of the entry's kind.
        payload: the entry, as it is on record (before encryption).
    """
    return hashlib.sha256(b"\0%b%c%b" % (salt, kind, payload)).digest()


def derive_prompt_key(secret: bytes) -> bytes:
    """Return the key of the commitments to the prompt, 32 bytes."""
    return hmac.digest(secret, _PROMPT, "sha256")


def commit_to_text(prompt_key: bytes, text: str) -> str:
    """Return the commitment to a prompt's text, in hex."""
    return hmac.digest(prompt_key, b"text\0" + text.encode(errors="replace"), "sha256").hex()


class IdsCommitment:
    """Commitment to a prompt's token ids, which is computed a piece at a time.

    Args:
        prompt_key: key of the commitments.
        token_ids: the ids.
    """

    def __init__(self, prompt_key: bytes, token_ids: Sequence[int]) -> None:
        self._token_ids = token_ids
        self._num_done = 0
        self._mac = hmac.new(prompt_key, b"ids\0", "sha256")

    def advance(self, count: int) -> None:
        """Take in up to `count` more ids, 4 bytes each, little-endian."""
        if self._num_done < len(self._token_ids):
            piece = self._token_ids[self._num_done : self._num_done + count]
            self._mac.update(struct.pack(f"<{len(piece)}I", *piece))
            self._num_done += len(piece)

    def finish(self) -> str:
        """Take in all other ids; return the commitment, in hex."""
        self.advance(len(self._token_ids))
        return self._mac.hexdigest()


def commit_to_ids(prompt_key: bytes, token_ids: Sequence[int]) -> str:
    """Return the commitment to a prompt's token ids, in hex."""
    spelled = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return hmac.digest(prompt_key, b"ids\0" + spelled, "sha256").hex()
