"""Audit records in the journal: appended to the chain, and listed newest first."""

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from whence.v1.audit_pb2 import AuditRecord
from whence_server.domain.audit import AuditEntry, AuditFilter
from whence_server.domain.errors import JournalError
from whence_server.journal.audit_codec import encode_audit, matches
from whence_server.journal.audit_merge import AuditMerge
from whence_server.journal.log import Log
from whence_server.journal.readers import Readers
from whence_server.journal.store import Store

_CHUNK = 1_000
_MAX_EXAMINED = 20_000
"""Records that are examined for one page, so that a rare filter reads a bounded part."""


class AuditPage(NamedTuple):
    """One page of audit records, newest first."""

    records: list[AuditRecord]
    end: dict[bytes, int] | None
    """Position in each log, by its id, before which the next page begins; None at the list's end.

    A log that is not named has no more records for this list: it ended, or began after the list.
    """


class OtherJournalError(ValueError):
    """A page was asked for that begins in logs which this journal does not have."""


class AuditLog:
    """Audit records: written to one log, and listed from all logs of the database."""

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

    async def list(
        self, wanted: AuditFilter, limit: int, before: Mapping[bytes, int] | None = None
    ) -> AuditPage:
        """Return records that match a filter, newest first.

        Args:
            wanted: the filter.
            limit: maximum number of records.
            before: `AuditPage.end` of the page before; None for the first page.

        Raises:
            JournalError: the database is away.
            OtherJournalError: `before` is of another journal.
        """
        if before is None and self._log.writer.stall is None:
            with suppress(JournalError):
                await self._log.flush()
        return await self._readers.run_heavy(self._collect, wanted, limit, before)

    def _collect(
        self, wanted: AuditFilter, limit: int, before: Mapping[bytes, int] | None
    ) -> AuditPage:
        logs = {log.log_id: log for log in self._store.list_logs()}
        if before is None:
            # Records of later pages are older than these ends, whatever is written meanwhile.
            before = {log_id: log.position + 1 for log_id, log in logs.items()}
        if not before.keys() <= logs.keys():
            raise OtherJournalError
        places = {logs[log_id].writer: position for log_id, position in before.items()}
        merge = AuditMerge(self._store, places, _CHUNK)
        found: list[AuditRecord] = []
        for _, record in zip(range(_MAX_EXAMINED), merge, strict=False):
            if matches(record, wanted):
                found.append(record)
            if len(found) == limit:
                break
        ids = {log.writer: log_id for log_id, log in logs.items()}
        ends = {ids[writer]: position for writer, position in merge.find_ends().items()}
        return AuditPage(found, ends or None)
