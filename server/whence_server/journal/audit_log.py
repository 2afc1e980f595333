"""Audit records in the journal: appended to the chain, and listed newest first."""

import logging
from contextlib import suppress
from typing import NamedTuple

from google.protobuf.message import DecodeError

from whence.v1.audit_pb2 import AuditRecord
from whence_server.domain.audit import AuditEntry, AuditFilter
from whence_server.domain.entries import Entry
from whence_server.domain.errors import JournalError
from whence_server.journal.audit_codec import encode_audit, matches
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.store import Store

_log = logging.getLogger(__name__)

_CHUNK = 1_000
_MAX_EXAMINED = 20_000
"""Records that are examined for one page, so that a rare filter reads a bounded part."""


class AuditPage(NamedTuple):
    """One page of audit records, newest first."""

    records: list[AuditRecord]
    end: int | None
    """Position before which the next page begins; None at the list's end."""


class AuditLog:
    """Audit records of one journal."""

    def __init__(self, log: Log, store: Store, readers: Readers) -> None:
        self._log = log
        self._store = store
        self._readers = readers

    def record(self, entry: AuditEntry) -> None:
        """Append an audit record.

        Raises:
            JournalError: nothing more can be written.
        """
        self._log.record_audit(encode_audit(entry))

    async def list(self, wanted: AuditFilter, limit: int, before: int | None = None) -> AuditPage:
        """Return records that match a filter, newest first.

        Args:
            wanted: the filter.
            limit: maximum number of records.
            before: `AuditPage.end` of the page before; None for the first page.
        """
        if before is None and self._log.writer.stall is None:
            with suppress(JournalError):
                await self._log.flush()
        start = self._log.position + 1 if before is None else before
        return await self._readers.run_heavy(self._collect, wanted, limit, start)

    def _collect(self, wanted: AuditFilter, limit: int, before: int) -> AuditPage:
        found: list[AuditRecord] = []
        for _ in range(_MAX_EXAMINED // _CHUNK):
            entries = self._store.read_audit(before, _CHUNK)
            for entry in entries:
                record = _parse(entry)
                if record is not None and matches(record, wanted):
                    found.append(record)
                before = entry.position
                if len(found) == limit:
                    return AuditPage(found, before)
            if len(entries) < _CHUNK:
                return AuditPage(found, None)
        return AuditPage(found, before)


def _parse(entry: Entry) -> AuditRecord | None:
    try:
        return AuditRecord.FromString(entry.payload)
    except DecodeError:
        # One damaged record must not hide the others; `whence-server verify` describes it.
        _log.error("the audit record at position %d is not a message", entry.position)
        return None
