"""The hash chain over the journal's entries, and the walk that verifies it.

    hash_0 = SHA-256("whence journal v1" || writer id)
    hash_i = SHA-256(hash_(i-1) || kind || HMAC-SHA-256(key, payload))

The key is the generation's random secret. Entries outside a generation's offsets (calls,
deletions) have an empty key: they may refer to a generation whose secret is gone. Deleting a
generation destroys its payloads and its secret and keeps the HMACs: the chain still verifies,
and nobody can test a guess at prompt or tokens against what is left. (Calls hold neither.)

What the walk finds: an entry whose payload, kind, generation or offset was changed, that was
removed, inserted or moved, and content that was taken out without a DELETED entry saying so.

What it cannot find without an outside witness that remembers a position and its hash
(`ChainReport.head`): that the newest entries were cut off while the server was down, and that
somebody with write access computed the whole chain anew. The columns beside the entries (ids,
times, previews, labels) are copies: `audit` holds them to the entries.

A generation's entries are bound to each other by its secret, and to its id by the bytes of its
start. Both go when it is deleted: the DELETED entry, which is hashed like any other, then says
which generation it was, and has a digest over what is left of its entries (deletion.proto).
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import NamedTuple

from whence_server.domain.entries import OUTSIDE_OFFSETS, EntryKind

SECRET_BYTES = 32
_KINDS = {kind: bytes([kind]) for kind in EntryKind}


def genesis(writer_id: bytes) -> bytes:
    """The hash before a writer's first entry."""
    return hashlib.sha256(b"whence journal v1" + writer_id).digest()


def inner_digest(secret: bytes, payload: bytes) -> bytes:
    """What the chain holds of a payload; reveals nothing of it once the secret is gone."""
    return hmac.digest(secret, payload, "sha256")


def next_hash(previous: bytes, kind: EntryKind, inner: bytes) -> bytes:
    """The chain's hash after one more entry."""
    return hashlib.sha256(previous + _KINDS[kind] + inner).digest()


class ChainRow(NamedTuple):
    """One stored entry with all that its hash is made from."""

    position: int
    generation: int
    """Position of its generation's STARTED entry; 0 for none."""
    offset: int
    kind: int
    payload: bytes | None
    """None once its content was deleted."""
    inner_digest: bytes | None
    """Kept in the payload's place."""
    hash: bytes
    secret: bytes | None


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a walk over the whole chain found."""

    num_entries: int
    """Entries that were found in order."""
    head: str
    """The last good entry's hash in hex: note it elsewhere, with the number of entries."""
    broken_position: int | None = None
    """The first position at which the chain does not hold."""
    detail: str = ""

    @property
    def intact(self) -> bool:
        """Whether every entry is as it was written."""
        return self.broken_position is None


class ChainWalk:
    """Verifies entries in order of position, chunk by chunk."""

    def __init__(self, writer_id: bytes) -> None:
        self.position = 0
        self._hash = genesis(writer_id)
        self._broken: tuple[int, str] | None = None
        self._offsets: dict[int, int] = {}
        """Last offset of each generation that has started and not finished."""
        self._stripped: dict[int, int] = {}
        """First position without content of each generation not yet seen DELETED."""

    @property
    def broken(self) -> bool:
        """Whether the walk has found a break: there is nothing to verify beyond it."""
        return self._broken is not None

    def take(self, rows: list[ChainRow]) -> None:
        """Verify the next entries."""
        for row in rows:
            fault = self._fault(row)
            if fault:
                self._broken = (min(row.position, self.position + 1), fault)
                return
            self.position = row.position
            self._hash = row.hash

    def report(self, min_entries: int = 0) -> ChainReport:
        """What was found, given that at least `min_entries` had been written."""
        broken = self._broken
        if broken is None and self.position < min_entries:
            broken = (self.position + 1, f"entries up to {min_entries} were written, and are gone")
        if broken is None and self._stripped:
            broken = (min(self._stripped.values()), "content is gone without a DELETED entry")
        position, detail = broken or (None, "")
        return ChainReport(self.position, self._hash.hex(), position, detail)

    def _fault(self, row: ChainRow) -> str:
        if row.position != self.position + 1:
            return f"the entry is missing; the next one is at {row.position}"
        try:
            kind = EntryKind(row.kind or -1)
        except ValueError:
            return f"there is no entry of kind {row.kind}"
        if row.payload is not None:
            secret = b"" if kind in OUTSIDE_OFFSETS else row.secret or b""
            inner = inner_digest(secret, row.payload)
        elif row.inner_digest is not None:
            inner = row.inner_digest
            self._stripped.setdefault(row.generation, row.position)
        else:
            return "the entry has neither a payload nor its digest"
        if not hmac.compare_digest(next_hash(self._hash, kind, inner), row.hash):
            return "the entry's hash does not follow from its content and the entry before it"
        return self._place_fault(row, kind)

    def _place_fault(self, row: ChainRow, kind: EntryKind) -> str:
        """Whether the entry stands at the wrong place in its generation."""
        if kind is EntryKind.DELETED:
            self._stripped.pop(row.generation, None)
        if kind in OUTSIDE_OFFSETS:
            return "" if row.offset == 0 else "the entry has an offset and should have none"
        if kind is EntryKind.STARTED and row.generation != row.position:
            return "the generation's start is numbered as part of another"
        expected = 1 if kind is EntryKind.STARTED else self._offsets.get(row.generation, 0) + 1
        if row.offset != expected:
            return f"the entry has offset {row.offset} where {expected} comes next"
        if kind is EntryKind.FINISHED:
            self._offsets.pop(row.generation, None)
        else:
            self._offsets[row.generation] = row.offset
        return ""
