"""Entries of callers' streams in memory, where the record holds less than the stream."""

import asyncio
from collections import deque
from collections.abc import Callable

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import ContentsFullError
from whence_server.journal.signal import Signal
from whence_server.journal.tail import LiveGeneration

MAX_BYTES = 64 << 20
"""Bytes of the entries of all generations, above which those that were read are dropped."""
MOST_BYTES = 4 * MAX_BYTES
"""Bytes of the entries of all generations, above which no further generation begins."""
MAX_GENERATION_BYTES = 8 << 20
"""Unread bytes of one generation, above which it waits for its reader."""
KEPT_S = 10.0
"""Seconds after a generation's end for which its entries are held: longer if nobody has read the
end, and while a call reads."""

_RETRY_AFTER_S = 1.0
_ROOMS = 64
"""Part of the bound by which the entries grow between two attempts to make room."""


class HeldContent:
    """Entries of one generation's stream, from its start until some seconds after its end.

    Attributes:
        generation_id: id of the generation.
        live: the generation in the journal, which wakes readers.
        num_bytes: bytes of the held entries.
        is_forgotten: True once nothing is held any more, and readers have the record alone.
    """

    def __init__(
        self, contents: "HeldContents", generation_id: str, live: LiveGeneration, kept_s: float
    ) -> None:
        """Hold nothing yet; `HeldContents.hold` makes it."""
        self.generation_id = generation_id
        self.live = live
        self.num_bytes = 0
        self.is_forgotten = False
        self._contents = contents
        self._kept_s = max(kept_s, KEPT_S)
        self._entries: deque[Entry] = deque()
        self._last_offset = 0
        self._cursors: dict[object, int] = {}
        """Offsets that the calls which read now have written to their connections."""
        self._read_offset = 0
        """Largest offset that a call has written, whether it still reads or not."""
        self._finished = False

    @property
    def changed(self) -> Signal:
        """Signal that is notified when there is more to read, and when the journal fails."""
        return self.live.changed

    @property
    def first_offset(self) -> int:
        """Offset of the first held entry."""
        return self._last_offset - len(self._entries) + 1

    @property
    def was_read(self) -> bool:
        """True if a call has written the end to its connection."""
        return self._finished and self._read_offset >= self._last_offset

    @property
    def is_followed(self) -> bool:
        """True while a call reads the entries."""
        return bool(self._cursors)

    @property
    def finished(self) -> bool:
        """True once FINISHED is held."""
        return self._finished

    def push(self, kind: EntryKind, payload: bytes) -> None:
        """Hold the next entry of the stream, and wake its readers."""
        if self.is_forgotten:
            return
        self._last_offset += 1
        self._entries.append(Entry(0, self.generation_id, self._last_offset, kind, payload))
        self.num_bytes += len(payload)
        self._contents.note_added(self, len(payload))
        self.changed.notify()

    def finish(self) -> None:
        """Forget the entries after the time for which the caller may come back."""
        self._finished = True
        asyncio.get_running_loop().call_later(KEPT_S, self._expire, self._kept_s - KEPT_S)

    def _expire(self, left_s: float) -> None:
        """Forget the entries, unless their end was not read and there is time left."""
        # A call that reads now gets the rest, however slow it is.
        if not self.is_followed and (self.was_read or left_s <= 0):
            self._contents.forget(self)
        else:
            wait_s = min(KEPT_S, left_s) if left_s > 0 else KEPT_S
            asyncio.get_running_loop().call_later(wait_s, self._expire, left_s - wait_s)

    def read_after(self, offset: int, max_bytes: int) -> list[Entry] | None:
        """Return entries that readers may see, or FINISHED; None if some are held no longer."""
        if self._finished and offset >= self._last_offset:
            return [self._entries[-1]] if self._is_visible(self._last_offset) else []
        first = self.first_offset
        if offset + 1 < first:
            return None
        batch: list[Entry] = []
        num_bytes = 0
        for place in range(offset + 1 - first, len(self._entries)):
            entry = self._entries[place]
            num_bytes += len(entry.payload)
            if not self._is_visible(entry.offset) or (batch and num_bytes > max_bytes):
                break
            batch.append(entry)
        return batch

    def _is_visible(self, offset: int) -> bool:
        return not self._contents.strict or offset <= self.live.visible_offset

    # ---- readers ----

    def move(self, reader: object, offset: int) -> None:
        """Note the offset up to which a call has written entries to its connection."""
        # A caller may claim to have more than there is.
        self._cursors[reader] = min(offset, self._last_offset)
        self._read_offset = max(self._read_offset, self._cursors[reader])
        self._contents.note_read(self)

    def leave(self, reader: object) -> None:
        """Note that a call reads no more; it may come back."""
        self._cursors.pop(reader, None)

    def count_unread_bytes(self) -> int:
        """Return the bytes that are not written to the connections of all calls that read.

        Bytes that no call may see yet are left out: a wait for readers would be without end.
        """
        after = min(self._cursors.values(), default=self._read_offset)
        num_bytes = 0
        for entry in reversed(self._entries):
            if entry.offset <= after:
                break
            if self._is_visible(entry.offset):
                num_bytes += len(entry.payload)
        return num_bytes

    def drop_read(self) -> int:
        """Drop the entries that all calls which read have written; return their bytes."""
        after = min(self._cursors.values(), default=self._read_offset)
        before = self.num_bytes
        while len(self._entries) > 1 and self._entries[0].offset <= after:
            self.num_bytes -= len(self._entries.popleft().payload)
        return before - self.num_bytes

    def drop_all(self) -> int:
        """Hold nothing any more, and let readers go on from the record; return the bytes."""
        before, self.num_bytes, self.is_forgotten = self.num_bytes, 0, True
        self._entries.clear()
        self.changed.notify()
        return before


class HeldContents:
    """Entries of all generations' streams whose records hold less.

    Args:
        strict: True if an entry is shown only after its stored form is on disk.
        max_bytes: bytes of all entries above which those that were read are dropped, and then those
            of generations that have ended.
        max_generation_bytes: unread bytes of one generation above which it is full.
        most_bytes: bytes of all entries above which no further generation begins.

    Attributes:
        full: generations that have to wait until their readers have read more.
        on_read: called with a generation's id when a call has read more of it.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        max_bytes: int = MAX_BYTES,
        max_generation_bytes: int = MAX_GENERATION_BYTES,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.strict = strict
        self.full: set[str] = set()
        self.on_read: Callable[[str], None] = _ignore
        self._max_bytes = max_bytes
        self._max_generation_bytes = max_generation_bytes
        self._most_bytes = most_bytes
        self._num_bytes = 0
        self._next_room = 0
        """Bytes of all entries above which room is made again."""
        self._held: dict[str, HeldContent] = {}

    def check_room(self) -> None:
        """Check that a further generation can begin, whose entries are held.

        Raises:
            ContentsFullError: unread entries take too much memory.
        """
        if self._num_bytes > self._most_bytes:
            self._make_room()
            if self._num_bytes > self._most_bytes:
                raise ContentsFullError(self._most_bytes, _RETRY_AFTER_S)

    def hold(self, generation_id: str, live: LiveGeneration, kept_s: float) -> HeldContent:
        """Begin to hold the entries of a generation."""
        held = self._held[generation_id] = HeldContent(self, generation_id, live, kept_s)
        return held

    def find(self, generation_id: str) -> HeldContent | None:
        """Return the held entries of a generation; None if nothing is held."""
        return self._held.get(generation_id)

    def has_room(self, generation_id: str) -> bool:
        """Return whether readers have read enough for a full generation to go on.

        Half of the bound has to be free, so that it does not stop and go at every entry.
        """
        held = self._held.get(generation_id)
        return held is None or held.count_unread_bytes() <= self._compute_share() // 2

    def forget(self, held: HeldContent) -> None:
        """Drop the entries of a generation."""
        if self._held.get(held.generation_id) is held:
            del self._held[held.generation_id]
        self.full.discard(held.generation_id)
        self._num_bytes -= held.drop_all()

    def note_added(self, held: HeldContent, num_bytes: int) -> None:
        """Count bytes of a generation; make room, or let it wait for its reader."""
        self._num_bytes += num_bytes
        if held.num_bytes > self._max_generation_bytes:
            self._num_bytes -= held.drop_read()
        if self._num_bytes <= self._max_bytes:
            self._next_room = 0
        elif self._num_bytes > self._next_room:
            self._make_room()
            # Looking at every generation for each token would hold all of them up.
            self._next_room = self._num_bytes + self._max_bytes // _ROOMS
        # Its share alone decides, so that a slow reader stops no other's generation.
        if held.num_bytes > self._compute_share() and not held.finished:
            self.full.add(held.generation_id)

    def note_read(self, held: HeldContent) -> None:
        """Note that a call has read more of a generation."""
        self.on_read(held.generation_id)

    def _compute_share(self) -> int:
        """Return the unread bytes above which a generation waits: less while memory is short."""
        if self._num_bytes <= self._max_bytes:
            return self._max_generation_bytes
        return min(self._max_generation_bytes, self._max_bytes // max(len(self._held), 1))

    def _make_room(self) -> None:
        """Drop what was read, then generations that have ended: those that nobody reads first."""
        for held in self._held.values():
            self._num_bytes -= held.drop_read()
        ended = [held for held in self._held.values() if held.finished]
        ended.sort(key=lambda held: (held.is_followed, not held.was_read))
        for held in ended:
            if self._num_bytes <= self._max_bytes:
                return
            self.forget(held)


def _ignore(_generation_id: str) -> None:
    """Do nothing."""
