"""Places of the key that signs generations."""

import re
from pathlib import Path

_FORMS = {
    "awskms": (r".*[^/].*", "KEY"),
    "azurekms": (r"/*[^/]+/[^/].*", "VAULT/KEY"),
    "gcpkms": (r".*[^/].*", "projects/.../cryptoKeyVersions/NUMBER"),
    "hsm": (r"[0-9]+", "NUMBER"),
    "file2": (r".*[^/].*", "PATH"),
}
SERVICES = tuple(_FORMS)
"""Schemes of keys that securesystemslib's signers hold, and never give away."""
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def parse_signing_key(text: str) -> str:
    """Parse FILE, or the URI of a key service.

    Raises:
        ValueError: it is neither.
    """
    if not text.strip() or "\0" in text:
        raise ValueError(f"expected FILE, or a URI that begins with one of {', '.join(SERVICES)}")
    scheme, _, place = text.partition(":")
    if is_service(text):
        pattern, form = _FORMS[scheme]
        if not re.fullmatch(pattern, place):
            raise ValueError(f"expected {scheme}:{form}")
    elif _URI.match(text):
        raise ValueError(
            f"expected one of {', '.join(SERVICES)} before the colon; a file of that name is ./..."
        )
    return text


def is_service(place: str) -> bool:
    """Return whether a place is the URI of a key service."""
    return place.partition(":")[0] in SERVICES and ":" in place


def choose_key_path(place: str | None, default: Path) -> Path:
    """Return the path of the private key that signs statements."""
    return default if place is None or is_service(place) else Path(place)
