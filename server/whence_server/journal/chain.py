"""Hash chain over the journal's entries, and its verification.

    hash_0 = SHA-256("whence journal v1" || writer id)
    hash_i = SHA-256(hash_(i-1) || kind || HMAC-SHA-256(key, payload))

The key is the generation's random secret. Calls, deletions and audit records have an empty key:
they may refer to a generation whose secret is gone. Deleting a generation destroys its payloads and
its secret and keeps the HMACs: the chain still verifies, and nobody can test a guess at prompt or
tokens against the HMACs. (Calls and audit records hold neither.)

The walk detects an entry that was removed, inserted or moved, or whose payload, kind, generation
or offset was changed, and content that was removed without a DELETED entry.

Retention removes the oldest entries, once their content is gone. A DELETED entry then holds the
position and the hash of the last removed entry, and the walk begins with them (`Origin`): `audit`
compares the two. Removed entries cannot be verified, except by a hash of one noted elsewhere.

Without a position and its hash (`ChainReport.head`) noted elsewhere, the walk cannot detect that
the newest entries were removed while the server was down, or that somebody with write access
computed the whole chain anew. The columns beside the entries (ids, times, previews, labels) are
copies: `audit` compares them with the entries.

A generation's secret binds its entries to each other, and the payload of its STARTED entry binds
them to its id. A deletion destroys both: the DELETED entry, which is hashed like any other, then
holds the generation's id and a digest over the rest of its entries (deletion.proto).
"""

import hashlib
import hmac
from dataclasses import dataclass
from typing import NamedTuple

from whence_server.domain.entries import OUTSIDE_OFFSETS, EntryKind

SECRET_BYTES = 32
_KINDS = {kind: bytes([kind]) for kind in EntryKind}
_KEYLESS = frozenset({EntryKind.CALL, EntryKind.DELETED, EntryKind.AUDIT})


def hash_genesis(writer_id: bytes) -> bytes:
    """Return the hash from which a writer's first entry continues."""
    return hashlib.sha256(b"whence journal v1" + writer_id).digest()


def digest_payload(kind: int, secret: bytes | None, payload: bytes) -> bytes:
    """Return a payload's HMAC-SHA-256, which reveals nothing once the secret is destroyed.

    Args:
        kind: kind of the entry, which decides whether the secret is its key.
        secret: secret of the entry's generation; None if it has none.
        payload: the entry's bytes.
    """
    key = b"" if kind in _KEYLESS else secret or b""
    return hmac.digest(key, payload, "sha256")


def extend_hash(previous: bytes, kind: EntryKind, inner: bytes) -> bytes:
    """Return the chain's hash after one more entry."""
    return hashlib.sha256(previous + _KINDS[kind] + inner).digest()


class Origin(NamedTuple):
    """The last of the oldest entries that were removed, after which a journal begins."""

    position: int
    hash: bytes


class ChainRow(NamedTuple):
    """One stored entry with everything that its hash covers."""

    position: int
    generation: int
    """Position of its generation's STARTED entry; 0 for none."""
    offset: int
    kind: int
    payload: bytes | None
    """None after its content was deleted."""
    inner_digest: bytes | None
    """HMAC of the payload; None unless the content was deleted."""
    hash: bytes
    secret: bytes | None


@dataclass(frozen=True, slots=True)
class ChainReport:
    """Result of a walk over the whole chain."""

    num_entries: int
    """Number of entries before the first fault."""
    head: str
    """Hash of the last intact entry, in hex: note it elsewhere, with the number of entries."""
    broken_position: int | None = None
    """First position at which the chain is broken; None if it is intact."""
    detail: str = ""

    @property
    def intact(self) -> bool:
        """True if every entry is as it was written."""
        return self.broken_position is None


class ChainWalk:
    """Verification of entries in order of position, chunk by chunk."""

    def __init__(self, writer_id: bytes, origin: Origin | None = None) -> None:
        """Begin at the first entry, or after the last one that was removed."""
        self._origin = origin or Origin(0, hash_genesis(writer_id))
        self.position, self._hash = self._origin
        self._broken: tuple[int, str] | None = None
        self._offsets: dict[int, int] = {}
        """Last offset of each unfinished generation, by the position of its STARTED entry."""
        self._stripped: dict[int, int] = {}
        """First position without content, by generation, while no DELETED entry was seen."""

    @property
    def broken(self) -> bool:
        """True if the walk has found a break; later entries cannot be verified."""
        return self._broken is not None

    def take(self, rows: list[ChainRow]) -> None:
        """Verify the next entries."""
        for row in rows:
            fault = self._find_fault(row)
            if fault:
                self._broken = (min(row.position, self.position + 1), fault)
                return
            self.position = row.position
            self._hash = row.hash

    def report(self, min_entries: int = 0) -> ChainReport:
        """Return the result so far.

        Args:
            min_entries: number of entries known to have been written; fewer are a break.
        """
        broken = self._broken
        if broken is None and self.position < min_entries:
            broken = (
                self.position + 1,
                f"entries up to {min_entries} were written and are missing",
            )
        if broken is None and self._stripped:
            broken = (min(self._stripped.values()), "content is gone without a DELETED entry")
        position, detail = broken or (None, "")
        return ChainReport(self.position, self._hash.hex(), position, detail)

    def _find_fault(self, row: ChainRow) -> str:
        if row.position != self.position + 1:
            return f"the entry is missing; the next one is at {row.position}"
        try:
            kind = EntryKind(row.kind or -1)
        except ValueError:
            return f"the entry has the unknown kind {row.kind}"
        if row.payload is not None:
            inner = digest_payload(kind, row.secret, row.payload)
        elif row.inner_digest is not None:
            inner = row.inner_digest
            self._stripped.setdefault(row.generation, row.position)
        else:
            return "the entry has neither a payload nor its digest"
        if not hmac.compare_digest(extend_hash(self._hash, kind, inner), row.hash):
            return "the entry's hash does not follow from its content and the entry before it"
        return self._find_place_fault(row, kind)

    def _find_place_fault(self, row: ChainRow, kind: EntryKind) -> str:
        """Return why the entry is at the wrong place in its generation; "" if it is not."""
        if kind is EntryKind.DELETED:
            self._stripped.pop(row.generation, None)
        if kind in OUTSIDE_OFFSETS:
            return "" if row.offset == 0 else "the entry has an offset and should have none"
        if kind is EntryKind.STARTED and row.generation != row.position:
            return "the STARTED entry has the number of another generation"
        expected = 1 if kind is EntryKind.STARTED else self._offsets.get(row.generation, 0) + 1
        # The first entries of its generation were removed: any offset may be the first left.
        is_first_left = expected == 1 and 0 < row.generation <= self._origin.position
        if row.offset != expected and not (is_first_left and row.offset > 1):
            return f"the entry has offset {row.offset}, expected {expected}"
        if kind is EntryKind.FINISHED:
            self._offsets.pop(row.generation, None)
        else:
            self._offsets[row.generation] = row.offset
        return ""
