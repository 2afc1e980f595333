"""Stored form of a generation's entries, where it differs from those of its caller's stream."""

import asyncio
import hashlib
import hmac
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.content import ContentPolicy
from whence_server.domain.entries import EntryKind
from whence_server.domain.generation import Started
from whence_server.domain.requests import GenerationRequest
from whence_server.journal.codec import encode_started
from whence_server.journal.content_hiding import RECORD, Hiding
from whence_server.journal.entry_messages import MESSAGES
from whence_server.journal.rows import GenerationRow

_KEY_BYTES = 32
_LONG_BYTES = 32_768
"""Size of a start from which its texts are searched in a thread."""


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

    def end_sequence(self, index: int, stop: str) -> Sequence[Stored]:
        """Take the end of a sequence; return the stored entries that are settled by it.

        Args:
            index: the sequence's index.
            stop: stop string that ended it, which its text does not have; "" if none did.
        """
        ...


class RedactingForm(StoredForm, Protocol):
    """Stored form that searches texts."""

    def prepare(self, payload: bytes) -> None:
        """Search the start of a generation ahead of `take`, in any thread."""
        ...


class StoredForms:
    """Chooser of the stored form of each generation.

    Its key for the digests of requests is in memory alone, so that nobody who has the record can
    find out a short prompt by trying.

    Args:
        make_redacted: makes the form that redacts texts, of a generation's start and the digest
            that stands for its request's; None if nothing is redacted.
    """

    def __init__(
        self, make_redacted: Callable[[Started, str], RedactingForm] | None = None
    ) -> None:
        self._make_redacted = make_redacted
        self._prepared: dict[str, RedactingForm] = {}
        self._key = secrets.token_bytes(_KEY_BYTES)

    def make(self, started: Started) -> StoredForm | None:
        """Return the stored form of a generation; None if everything is stored as it is."""
        policy, digest = started.trace.content, self._blind(started)
        redacted: StoredForm | None = self._prepared.pop(started.generation_id, None)
        if redacted is None and self._make_redacted is not None:
            redacted = self._make_redacted(started, digest)
        if policy.is_whole:
            return redacted
        form = PolicyForm(policy, digest)
        return form if redacted is None else _Chain(redacted, form)

    @asynccontextmanager
    async def prepare(self, started: Started) -> AsyncGenerator[None, None]:
        """Search the texts of a long start in a thread, for a `make` within the block."""
        payload = b"" if self._make_redacted is None else encode_started(started)
        if self._make_redacted is None or len(payload) < _LONG_BYTES:
            yield
            return
        form = self._make_redacted(started, self._blind(started))
        # Megabytes of digits and spaces take seconds.
        await asyncio.to_thread(form.prepare, payload)
        self._prepared[started.generation_id] = form
        try:
            yield
        finally:
            self._prepared.pop(started.generation_id, None)

    def choose_hiding(self, policy: ContentPolicy) -> Hiding | None:
        """Return what other readers do not see of a generation that is not stored.

        Nothing of it is redacted in memory, so that they see no content at all if texts are.
        """
        return RECORD.get(policy if self._make_redacted is None else ContentPolicy.NONE)

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

    def end_sequence(self, index: int, stop: str) -> Sequence[Stored]:  # noqa: ARG002 - no wait
        """Return nothing: no entry waits."""
        return ()


class _Chain:
    """Two stored forms, one after the other."""

    def __init__(self, first: StoredForm, second: StoredForm) -> None:
        self._first, self._second = first, second

    def take(self, kind: EntryKind, payload: bytes) -> Sequence[Stored]:
        return self._pass(self._first.take(kind, payload))

    def end_sequence(self, index: int, stop: str) -> Sequence[Stored]:
        return self._pass(self._first.end_sequence(index, stop))

    def _pass(self, settled: Sequence[Stored]) -> Sequence[Stored]:
        return [stored for each in settled for stored in self._second.take(*each)]
