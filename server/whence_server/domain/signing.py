"""Places of the key that signs generations."""

from pathlib import Path

SERVICES = ("awskms", "azurekms", "gcpkms", "hsm", "file2")
"""Schemes of keys that securesystemslib's signers hold, and never give away."""


def parse_signing_key(text: str) -> str:
    """Parse FILE, or the URI of a key service.

    Raises:
        ValueError: it is neither.
    """
    scheme, colon, place = text.partition(":")
    if colon and scheme in SERVICES and not place.strip("/"):
        raise ValueError(f"expected the name of a key after {scheme}:")
    if not text.strip() or "\0" in text:
        raise ValueError(f"expected FILE, or a URI that begins with one of {', '.join(SERVICES)}")
    return text


def is_service(place: str) -> bool:
    """Return whether a place is the URI of a key service."""
    return place.partition(":")[0] in SERVICES and ":" in place


def choose_key_path(place: str | None, default: Path) -> Path:
    """Return the path of the private key that signs statements."""
    return default if place is None or is_service(place) else Path(place)
