"""Ranges of a text that are not stored."""

from typing import Final, NamedTuple


class RedactedRange(NamedTuple):
    """Range of a text's UTF-8 bytes that is not stored, [begin, end)."""

    kind: str
    """Name of the detector that found it: "mail", "card", ... or that of an own pattern."""
    begin: int
    end: int

    @property
    def mark(self) -> str:
        """Text that is stored in its place."""
        return f"[{self.kind}]"


KINDS: Final = ("mail", "card", "iban", "phone", "key")
"""Names of whence's own detectors."""
