"""Generations that are served without a record: their entries are in memory until they are read."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from whence_server.domain.entries import Entry, EntryKind
from whence_server.domain.errors import GenerationFailedError, GenerationNotFoundError
from whence_server.journal.content_hiding import Hiding
from whence_server.journal.rows import FinishIndex, GenerationIndex
from whence_server.journal.signal import Signal

MAX_BYTES = 16 << 20
"""Bytes of entries in memory above which those that were read are dropped."""
KEPT_S = 10.0
"""Time from a generation's end for which its entries can be read."""
_BATCH_BYTES = 64 << 10


@dataclass(eq=False)
class _Kept:
    """Entries of one generation.

    Attributes:
        num_dropped: entries that are no longer kept, all of them at the beginning.
        last_read: last offset that a reader has asked to go beyond.
        num_bytes: bytes of the kept entries.
        is_given_up: True once its unread entries were dropped, because it had most of the memory.
        hiding: removes what its content policy leaves out; None if that is nothing.
    """

    index: GenerationIndex
    hiding: Hiding | None = None
    entries: deque[Entry] = field(default_factory=deque)
    num_dropped: int = 0
    last_read: int = 0
    num_bytes: int = 0
    is_given_up: bool = False
    finished: bool = False
    changed: Signal = field(default_factory=Signal)

    @property
    def last_offset(self) -> int:
        return self.num_dropped + len(self.entries)

    def drop_read(self) -> int:
        """Drop entries that were read, but for the last one; return their bytes."""
        return self._drop_through(self.last_read)

    def give_up(self) -> int:
        """Drop all entries but the last one, read or not; return their bytes."""
        self.is_given_up = True
        self.changed.notify()
        return self._drop_through(self.last_offset)

    def _drop_through(self, offset: int) -> int:
        before = self.num_bytes
        while len(self.entries) > 1 and self.entries[0].offset <= offset:
            self.num_bytes -= len(self.entries.popleft().payload)
            self.num_dropped += 1
        return before - self.num_bytes

    def read_after(self, offset: int) -> list[Entry]:
        batch: list[Entry] = []
        num_bytes = 0
        for entry in self.entries:
            if entry.offset <= offset:
                continue
            num_bytes += len(entry.payload)
            if batch and num_bytes > _BATCH_BYTES:
                break
            batch.append(entry)
        if not batch and self.finished:
            return [self.entries[-1]]
        return batch


class Unrecorded:
    """Holder of the entries of generations that the journal has not taken.

    A generation can be followed and resumed until some seconds after its end. Afterwards nobody
    knows of it.

    Args:
        max_bytes: bytes of all entries above which those that were read are dropped. If the rest is
            too much, the generation fails of which most waits for its reader.
        kept_s: seconds from a generation's end until it is forgotten.

    Attributes:
        num_begun: number of generations since the server's start.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, kept_s: float = KEPT_S) -> None:
        self.num_begun = 0
        self._max_bytes = max_bytes
        self._kept_s = kept_s
        self._num_bytes = 0
        self._kept: dict[str, _Kept] = {}

    def find(self, generation_id: str) -> GenerationIndex | None:
        """Return what is known of a generation from its start; None if it is not known."""
        kept = self._kept.get(generation_id)
        return None if kept is None else kept.index

    def create(self, index: GenerationIndex, payload: bytes, hiding: Hiding | None = None) -> None:
        """Append STARTED; others than the caller see the entries after `hiding`."""
        self._kept[index.generation_id] = kept = _Kept(index, hiding)
        self.num_begun += 1
        self._push(index.generation_id, kept, EntryKind.STARTED, payload)

    def append(self, generation_id: str, kind: EntryKind, payload: bytes) -> int:
        """Append an entry of a running generation; return its offset.

        Raises:
            GenerationFailedError: too many bytes wait for readers, most of them for its own.
        """
        kept = self._kept[generation_id]
        if not kept.is_given_up:
            self._make_room(kept, len(payload))
        if kept.is_given_up:
            raise GenerationFailedError(
                "UNRECORDED_NOT_READ",
                "the generation is not on record, because the journal cannot be written, and its "
                f"reader is slow: more than {self._max_bytes} bytes wait in memory",
            )
        return self._push(generation_id, kept, kind, payload)

    def _make_room(self, kept: _Kept, num_bytes: int) -> None:
        """Drop entries until there is room for more of a generation, or it is given up.

        First those that were read; then all of the generation that has most, so that a slow reader
        fails its own.
        """
        if self._num_bytes + num_bytes <= self._max_bytes:
            return
        self._num_bytes -= sum(each.drop_read() for each in self._kept.values())
        while self._num_bytes + num_bytes > self._max_bytes and not kept.is_given_up:
            others = [each for each in self._kept.values() if not each.is_given_up]
            largest = max(others, key=lambda each: each.num_bytes)
            if largest is kept:
                # Its last entries can be read until its end.
                kept.is_given_up = True
            else:
                self._num_bytes -= largest.give_up()

    def finish(self, generation_id: str, payload: bytes, _index: FinishIndex) -> int:
        """Append FINISHED; return its offset."""
        kept = self._kept[generation_id]
        kept.finished = True
        asyncio.get_running_loop().call_later(self._kept_s, self._forget, generation_id)
        return self._push(generation_id, kept, EntryKind.FINISHED, payload)

    def record_occurrence(self, _generation_id: str, _payload: bytes) -> None:
        """Drop an occurrence: streams have none."""

    async def follow(
        self, generation_id: str, after_offset: int, *, whole: bool = True
    ) -> AsyncGenerator[list[Entry], None]:
        """Yield a generation's entries after an offset, live, until FINISHED.

        Args:
            generation_id: id of the generation.
            after_offset: offset up to which entries are skipped.
            whole: True for the generation's own caller.

        Raises:
            GenerationNotFoundError: entries after the offset are no longer kept.
        """
        kept, cursor = self._kept[generation_id], after_offset
        while True:
            if cursor < kept.num_dropped:
                raise GenerationNotFoundError(generation_id)
            batch = kept.read_after(cursor)
            if not batch:
                await kept.changed.wait()
                continue
            hiding = None if whole else kept.hiding
            yield batch if hiding is None else list(map(hiding.hide_entry, batch))
            cursor = batch[-1].offset
            kept.last_read = max(kept.last_read, cursor)
            if batch[-1].kind is EntryKind.FINISHED:
                return

    def _push(self, generation_id: str, kept: _Kept, kind: EntryKind, payload: bytes) -> int:
        offset = kept.last_offset + 1
        kept.entries.append(Entry(0, generation_id, offset, kind, payload))
        kept.num_bytes += len(payload)
        self._num_bytes += len(payload)
        kept.changed.notify()
        return offset

    def _forget(self, generation_id: str) -> None:
        kept = self._kept.pop(generation_id, None)
        if kept is not None:
            self._num_bytes -= kept.num_bytes
