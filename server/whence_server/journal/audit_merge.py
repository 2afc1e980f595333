"""Audit records of several logs in one order, newest first."""

import heapq
import logging
from collections.abc import Iterator, Mapping

from google.protobuf.message import DecodeError

from whence.v1.audit_pb2 import AuditRecord
from whence_server.domain.entries import Entry
from whence_server.journal.store import Store

_log = logging.getLogger(__name__)


class AuditMerge:
    """Iterator over the records of several logs, newest first.

    Each log gives its records in the opposite order of writing, so that a position tells what is
    left of it. Between logs, the record with the later time comes first: the time of the last
    call, because a record of several calls is written after it.

    Args:
        store: the database.
        places: position in each log before which its records are read, by the log's writer.
        num_ahead: records that are read at one time, of all logs together.
    """

    def __init__(self, store: Store, places: Mapping[int, int], num_ahead: int) -> None:
        chunk = -(-num_ahead // max(len(places), 1))
        self._logs = [_Log(store, writer, before, chunk) for writer, before in places.items()]
        self._heap: list[tuple[int, int, _Log]] = []
        for log in self._logs:
            self._push(log)

    def __iter__(self) -> Iterator[AuditRecord]:
        return self

    def __next__(self) -> AuditRecord:
        if not self._heap:
            raise StopIteration
        _, _, log = heapq.heappop(self._heap)
        record = log.take()
        self._push(log)
        return record

    def find_ends(self) -> dict[int, int]:
        """Return the position before which each log's records are left, by its writer."""
        return {log.writer: log.before for log in self._logs if log.peek() is not None}

    def _push(self, log: "_Log") -> None:
        record = log.peek()
        if record is not None:
            time = record.last_time if record.HasField("last_time") else record.time
            heapq.heappush(self._heap, (-time.ToNanoseconds(), log.writer, log))


class _Log:
    """Records of one log that are not taken yet.

    Attributes:
        writer: number of the log's writer.
        before: position of the record that was taken last.
    """

    def __init__(self, store: Store, writer: int, before: int, chunk: int) -> None:
        self.writer = writer
        self.before = before
        self._store = store
        self._chunk = chunk
        self._read: list[tuple[int, AuditRecord]] = []
        """Records that were read ahead with their positions, the oldest first."""
        self._next = before
        self._has_more = True

    def peek(self) -> AuditRecord | None:
        """Return the newest record that is not taken; None at the log's end."""
        while not self._read and self._has_more:
            entries = self._store.read_audit(self.writer, self._next, self._chunk)
            self._has_more = len(entries) == self._chunk
            for entry in reversed(entries):
                record = self._parse(entry)
                if record is not None:
                    self._read.append((entry.position, record))
            if entries:
                self._next = entries[-1].position
        return self._read[-1][1] if self._read else None

    def take(self) -> AuditRecord:
        """Return the newest record that is not taken, and step over it."""
        self.before, record = self._read.pop()
        return record

    def _parse(self, entry: Entry) -> AuditRecord | None:
        try:
            return AuditRecord.FromString(entry.payload)
        except DecodeError:
            # One damaged record must not hide the others; `whence-server verify` describes it.
            _log.error(
                "the audit record at position %d of log %d is not a message",
                entry.position,
                self.writer,
            )
            return None
