"""Digests of labels, by which encrypted generations are found."""

import hmac
from collections.abc import Mapping

from whence_server.journal.sealing.forms import StoredLabel

_DIGEST_BYTES = 16


def digest_labels(key: bytes, labels: Mapping[str, str]) -> dict[str, str]:
    """Return labels with the digests of their names and values, in hex.

    The digest of a name is the beginning of HMAC-SHA-256(key, "name" NUL name); that of a value
    that of HMAC-SHA-256(key, "value" NUL name NUL value), so that equal values of two labels
    differ.
    """
    return {
        digest_name(key, name): _digest(key, "value", name, value) for name, value in labels.items()
    }


def digest_name(key: bytes, name: str) -> str:
    """Return the digest of a label's name, in hex."""
    return _digest(key, "name", name)


def spell_label(key: bytes, name: str, value: str | None) -> list[StoredLabel]:
    """Return the two ways in which a label may be stored, as `Forms.spell_label`."""
    if value is None:
        return [StoredLabel(name, None), StoredLabel(digest_name(key, name), None)]
    ((stored_name, stored_value),) = digest_labels(key, {name: value}).items()
    return [StoredLabel(name, value), StoredLabel(stored_name, stored_value)]


def _digest(key: bytes, *parts: str) -> str:
    content = b"\0".join(part.encode(errors="replace") for part in parts)
    return hmac.digest(key, content, "sha256")[:_DIGEST_BYTES].hex()
