"""Stored form of a generation's entries, where it differs from those of its caller's stream."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import EntryKind
from whence_server.domain.generation import Started
from whence_server.domain.requests import GenerationRequest
from whence_server.journal.content_hiding import RECORD
from whence_server.journal.entry_messages import MESSAGES
from whence_server.journal.rows import GenerationRow

_KEY_BYTES = 32


class Stored(NamedTuple):
    """An entry as it is stored."""

    kind: EntryKind
    payload: bytes


class StoredForm(Protocol):
    """Maker of the stored entries of one generation."""

    def take(self, kind: EntryKind, payload: bytes) -> Sequence[Stored]:
        """Take the next entry of the stream; return the stored entries that are settled by it.

        Each entry of the stream has one stored entry, in the same order, so that their offsets
        agree. STARTED is settled at once, and everything is with FINISHED.
        """
        ...


class StoredForms:
    """Chooser of the stored form of each generation.

    Its key for the digests of requests is in memory alone, so that nobody who has the record can
    find out a short prompt by trying.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)

    def make(self, started: Started) -> StoredForm | None:
        """Return the stored form of a generation; None if everything is stored as it is."""
        policy = started.trace.content
        return None if policy.is_whole else PolicyForm(policy, self._blind(started))

    def matches(self, row: GenerationRow, request: GenerationRequest) -> bool:
        """Return whether a request is equal to the one that began a generation.

        A generation of an earlier run of the server whose request's digest is blinded equals none.
        """
        for digest in filter(None, (request.digest, request.former_digest)):
            if row.request_digest in {digest, self._compute(row.generation_id, digest)}:
                return True
        return False

    def _blind(self, started: Started) -> str:
        return self._compute(started.generation_id, started.request_digest)

    def _compute(self, generation_id: str, digest: str) -> str:
        # With the id, equal requests have different digests.
        told = f"{generation_id}:{digest}".encode()
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()


class PolicyForm:
    """Stored form by a content policy: entries without what it leaves out.

    Args:
        policy: a policy that leaves something out.
        request_digest: digest to store in place of the request's own.
    """

    def __init__(self, policy: ContentPolicy, request_digest: str) -> None:
        self._hiding = RECORD[policy]
        self._request_digest = request_digest

    def take(self, kind: EntryKind, payload: bytes) -> Sequence[Stored]:
        """Take an entry; return its stored one."""
        message = MESSAGES[kind].FromString(payload)
        self._hiding.hide(message)
        if isinstance(message, GenerationStarted):
            message.request_digest = self._request_digest
        return (Stored(kind, message.SerializeToString()),)
