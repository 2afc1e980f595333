"""Trail of what callers do, bounded so that nobody can fill the disk with it."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import unquote

from whence_server.domain.audit import READS, AuditAction, AuditEntry, AuditLevel, Deed
from whence_server.domain.errors import JournalError

_log = logging.getLogger(__name__)

REASON_KEY = "whence-reason"
"""Metadata, or HTTP header, with the reason that a caller gives; percent-encoded like a URL."""
MAX_REASON_CHARACTERS = 256
MAX_DIFFERENT = 100
"""Different calls of one caller in a minute that have records of their own; of those that fail,
as many more, so that failures do not hide what was read."""
# A character has up to four bytes, and each is written as in "%C3".
_MAX_ENCODED = 12 * MAX_REASON_CHARACTERS
_MINUTE_NS = 60_000_000_000
# Each begins or ends a generation, which costs more than its record.
_NEVER_SUMMARISED = frozenset({AuditAction.GENERATE, AuditAction.CANCEL, AuditAction.DELETE})


def parse_reason(given: str | bytes) -> str:
    """Return the reason that a header gives, printable and within its bound."""
    text = given if isinstance(given, str) else given.decode(errors="replace")
    decoded = unquote(text[:_MAX_ENCODED])[:MAX_REASON_CHARACTERS]
    return "".join(it if it.isprintable() else " " for it in decoded).strip()


@dataclass(slots=True)
class _Counted:
    """Equal deeds of the current minute, of which the first is on record already."""

    deed: Deed
    last_time_ns: int
    num_more: int = 0
    is_summary: bool = False


class AuditTrail:
    """Writer of audit records: the first of equal calls at once, a minute's others as a number.

    A caller has at most `MAX_DIFFERENT` different calls in a minute on record, and as many that
    fail; further ones are counted by method and status. So a caller that reads in a loop adds a few
    records a minute, and one that reads everything a hundred. Calls that start, cancel or delete a
    generation are always on record: equal ones but for their reasons once, and then as a number.

    Args:
        level: deeds that are put on record.
        write: puts an entry on record; raises JournalError if it cannot be written. None until
            `open`.
        clock: Unix time in ns.
    """

    def __init__(
        self,
        level: AuditLevel,
        write: Callable[[AuditEntry], None] | None = None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._level = level
        self._write = write
        self._clock = clock
        self._minute = -1
        self._counted: dict[Deed, _Counted] = {}
        self._num_different: Counter[tuple[str, bool]] = Counter()
        """Different calls of a caller that succeed, and of those that fail."""
        self._has_failed = False

    @property
    def is_on(self) -> bool:
        """True if anything is put on record."""
        return self._level is not AuditLevel.OFF

    def open(self, write: Callable[[AuditEntry], None]) -> None:
        """Write to a journal, which opens after the trail is made."""
        self._write = write

    def note(self, deed: Deed) -> None:
        """Put a deed on record, or count it."""
        if not self.is_on:
            return
        if self._level is AuditLevel.WRITES and deed.action in READS:
            return
        self.write_due()
        has_failed = bool(deed.status_code)
        stays = deed.action in _NEVER_SUMMARISED and bool(deed.generation_id) and not has_failed
        # A call that joins a generation costs nothing: its reason makes it no other call.
        key = _make_key(replace(deed, reason="") if stays else deed)
        group = deed.caller_id, has_failed
        if key in self._counted:
            self._count(key, deed)
        elif stays:
            self._begin(key, deed)
        elif self._num_different[group] < MAX_DIFFERENT:
            self._num_different[group] += 1
            self._begin(key, deed)
        else:
            self._summarise(deed)

    def write_due(self, *, at_end: bool = False) -> None:
        """Put the numbers of a minute that is over on record; at the end, of the current one."""
        minute = self._clock() // _MINUTE_NS
        if minute == self._minute and not at_end:
            return
        self._minute = minute
        counted, self._counted = self._counted, {}
        self._num_different.clear()
        for it in counted.values():
            if it.num_more:
                self._put(AuditEntry(it.deed, it.num_more, it.last_time_ns, it.is_summary))

    def _begin(self, key: Deed, deed: Deed, *, is_summary: bool = False) -> None:
        self._counted[key] = _Counted(deed, deed.time_ns, is_summary=is_summary)
        self._put(AuditEntry(deed, 1, deed.time_ns, is_summary))

    def _count(self, key: Deed, deed: Deed) -> None:
        counted = self._counted[key]
        if not counted.num_more:
            # The first is on record: the number begins with this one.
            counted.deed = deed
        elif counted.deed.reason != deed.reason:
            # No one reason stands for all.
            counted.deed = replace(counted.deed, reason="")
        counted.num_more += 1
        counted.last_time_ns = max(counted.last_time_ns, deed.time_ns)

    def _summarise(self, deed: Deed) -> None:
        whole = replace(deed, generation_id="", detail="", reason="")
        # No single deed has this key.
        key = replace(_make_key(whole), span_id="summary")
        if key in self._counted:
            self._count(key, whole)
        else:
            self._begin(key, whole, is_summary=True)

    def _put(self, entry: AuditEntry) -> None:
        if self._write is None:
            return
        try:
            self._write(entry)
        except JournalError as error:
            # The journal is lost, and the server ends: the call must get its own answer.
            if not self._has_failed:
                _log.error("the audit cannot be written: %s", error)
            self._has_failed = True


def _make_key(deed: Deed) -> Deed:
    """Return what equal deeds share."""
    return replace(deed, time_ns=0, address="", trace_id="", span_id="")


SILENT = AuditTrail(AuditLevel.OFF)
"""Trail of a server without an audit."""
