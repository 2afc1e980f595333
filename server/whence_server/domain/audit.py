"""Audit: what callers did, as it is put on record."""

from dataclasses import dataclass
from enum import IntEnum, StrEnum


class AuditLevel(StrEnum):
    """Deeds that are put on record."""

    OFF = "off"
    """None."""
    WRITES = "writes"
    """All but reads."""
    ALL = "all"
    """Reads too."""


class AuditAction(IntEnum):
    """Kind of a deed, with the numbers of whence.v1.AuditAction."""

    GENERATE = 1
    RECORD = 2
    READ = 3
    READ_CONTENT = 4
    EXPLAIN = 5
    CANCEL = 6
    DELETE = 7
    EXPORT = 8
    CHANGE = 9
    READ_AUDIT = 10
    REFUSED = 11
    VERIFY = 20


READS = frozenset({AuditAction.READ, AuditAction.READ_CONTENT})
"""Actions that change nothing, and that `AuditLevel.WRITES` leaves out."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One call, or one thing that the server does by itself."""

    action: AuditAction
    time_ns: int
    """Unix time of its arrival."""
    method: str = ""
    """Name of the call, as `Caller.method`; "" for what the server does by itself."""
    caller_id: str = ""
    """Id of the caller; "" if it is not known."""
    address: str = ""
    generation_id: str = ""
    """Id of the generation that it concerns; "" for none, several, or after a failure."""
    detail: str = ""
    """Cause of a refusal, id of a training run or of a branch's parent, destination of an export,
    file of a change."""
    reason: str = ""
    """Reason that the caller gave."""
    status_code: int = 0
    """gRPC status code."""
    trace_id: str = ""
    span_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Equal deeds of one minute, as one record.

    Attributes:
        deed: the first of them.
        num_calls: their number.
        last_time_ns: Unix time of the last one.
        is_summary: True if they differ in generation, detail or reason.
    """

    deed: Deed
    num_calls: int
    last_time_ns: int
    is_summary: bool = False


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Condition for audit records; unset fields match all."""

    start_after_ns: int | None = None
    start_before_ns: int | None = None
    caller_id: str = ""
    generation_id: str = ""
    actions: frozenset[int] = frozenset()
