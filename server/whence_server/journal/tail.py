"""Running generations in memory, each with a bounded tail of its entries."""

from collections import deque
from itertools import islice

from whence_server.domain.entries import Entry
from whence_server.journal.attestor import Leaves
from whence_server.journal.rows import FinishIndex, GenerationIndex, GenerationRow
from whence_server.journal.sealing.forms import CLEAR, Form
from whence_server.journal.signal import Signal


class LiveGeneration:
    """A generation from its start until its FINISHED entry is on disk.

    Attributes:
        started_position: position of its STARTED entry.
        secret: the chain's key for its entries.
        form: converts its entries to what is stored; the tail has them in clear.
        offset: offset of its newest entry.
        visible_offset: last offset that readers may see.
        finish: columns of its FINISHED entry; None before.
        recovered: True if an earlier run left it unfinished.
        leaves: digest of its entries, to sign its end; None if nobody signs it.
        statement: what was added to FINISHED: its signed statement.
        closed: True if its tail is dropped and all its entries are on disk.
        changed: notified when `visible_offset` or `closed` changes.
    """

    __slots__ = (
        "changed",
        "closed",
        "finish",
        "form",
        "index",
        "leaves",
        "offset",
        "recovered",
        "secret",
        "started_position",
        "statement",
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
        form: Form = CLEAR,
    ) -> None:
        self.index = index
        self.secret = secret
        self.form = form
        self.started_position = started_position
        self.offset = self.visible_offset = offset
        self.finish: FinishIndex | None = None
        self.recovered = recovered
        self.leaves: Leaves | None = None
        self.statement = b""
        self.closed = False
        self.tail: deque[Entry] = deque()
        self.changed = Signal()

    @property
    def row(self) -> GenerationRow:
        """Current row, as a store would return it."""
        return GenerationRow(self.index, self.finish)

    def push(self, entry: Entry, committed_position: int, max_entries: int) -> None:
        """Add the newest entry; drop the oldest ones that are on disk."""
        tail = self.tail
        tail.append(entry)
        while len(tail) > max_entries and tail[0].position <= committed_position:
            tail.popleft()

    def read_after(self, offset: int, max_bytes: int) -> list[Entry] | None:
        """Return visible entries after `offset`, or FINISHED; None if some are only on disk."""
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

    def find_offset(self, position: int) -> int:
        """Return the offset of the newest entry at or before a position; 0 if there is none."""
        offset = self.tail[0].offset - 1 if self.tail else self.offset
        for entry in self.tail:
            if entry.position <= position:
                offset = entry.offset
        return offset

    def show(self, offset: int) -> None:
        """Make entries up to `offset` visible, and wake readers."""
        self.visible_offset = offset
        self.changed.notify()

    def close(self) -> None:
        """Drop the tail; readers continue from disk."""
        self.closed = True
        self.tail.clear()
        self.changed.notify()
