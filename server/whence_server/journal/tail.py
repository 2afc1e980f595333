"""A running generation as the journal holds it in memory: a bounded tail of its entries."""

from collections import deque
from itertools import islice

from whence_server.domain.entries import Entry
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow
from whence_server.journal.signal import Signal


class LiveGeneration:
    """One generation from its start until its FINISHED entry is on disk.

    Attributes:
        started_position: of its STARTED entry.
        secret: the chain's key for its entries.
        offset: of its newest entry.
        visible_offset: up to which those who follow it may see.
        finish: set with its FINISHED entry.
        recovered: left open by an earlier run.
        closed: its tail is gone; what it was is on disk.
        changed: notified when `visible_offset` or `closed` moves.
    """

    __slots__ = (
        "changed",
        "closed",
        "finish",
        "index",
        "offset",
        "recovered",
        "secret",
        "started_position",
        "tail",
        "visible_offset",
    )

    def __init__(
        self,
        index: GenerationIndex,
        secret: bytes,
        started_position: int,
        *,
        offset: int = 0,
        recovered: bool = False,
    ) -> None:
        self.index = index
        self.secret = secret
        self.started_position = started_position
        self.offset = self.visible_offset = offset
        self.finish: FinishIndex | None = None
        self.recovered = recovered
        self.closed = False
        self.tail: deque[Entry] = deque()
        self.changed = Signal()

    @property
    def row(self) -> GenerationRow:
        """What a store would answer, as of now."""
        return GenerationRow(self.index, self.finish)

    def push(self, entry: Entry, committed_position: int, max_entries: int) -> None:
        """Add the newest entry; the oldest leave once they are on disk."""
        tail = self.tail
        tail.append(entry)
        while len(tail) > max_entries and tail[0].position <= committed_position:
            tail.popleft()

    def after(self, offset: int, max_bytes: int) -> list[Entry] | None:
        """Visible entries beyond `offset`, FINISHED in any case; None if some are on disk only."""
        tail = self.tail
        first = self.offset - len(tail) + 1
        if offset + 1 < first:
            return None
        batch: list[Entry] = []
        num_bytes = 0
        for entry in islice(tail, offset + 1 - first, max(self.visible_offset + 1 - first, 0)):
            num_bytes += len(entry.payload)
            if batch and num_bytes > max_bytes:
                break
            batch.append(entry)
        if self.finish and offset >= self.visible_offset == self.offset:
            return [tail[-1]]
        return batch

    def offset_up_to(self, position: int) -> int:
        """Offset of its newest entry that lies at a position or before it; 0 for none."""
        offset = self.tail[0].offset - 1 if self.tail else self.offset
        for entry in self.tail:
            if entry.position <= position:
                offset = entry.offset
        return offset

    def show(self, offset: int) -> None:
        """Let readers see up to `offset`, and wakes them."""
        self.visible_offset = offset
        self.changed.notify()

    def close(self) -> None:
        """Let go of the tail: whoever still reads goes on from disk."""
        self.closed = True
        self.tail.clear()
        self.changed.notify()
