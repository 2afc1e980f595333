"""Signer of the ends of generations, as the log sees it."""

from typing import Protocol

from whence_server.domain.entries import EntryKind


class Leaves(Protocol):
    """Digest of the entries of one generation, until its end is signed."""

    def add(self, kind: EntryKind, payload: bytes) -> None:
        """Add the next entry, as it is stored, before encryption."""

    def sign(self, payload: bytes) -> bytes:
        """Return what is added to FINISHED; b"" if it cannot be signed."""


class Attestor(Protocol):
    """Signer of the ends of a log's generations."""

    def begin(self, generation_id: str, *, recovered: bool = False) -> Leaves:
        """Begin with a generation, whose entries follow from STARTED on."""

    def for_takeover(self) -> "Attestor":
        """Return the signer of the log of another server, which this one closes."""
