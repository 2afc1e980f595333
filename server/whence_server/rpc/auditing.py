"""Notes of gRPC calls for the audit."""

from collections.abc import Iterable
from typing import Any, Protocol

from whence_server.access.audit import REASON_KEY, AuditTrail, parse_reason
from whence_server.access.deeds import make_deed
from whence_server.domain.identity import Identity
from whence_server.domain.occurrences import Caller

_MAX_ID_CHARACTERS = 128


class NotedCall(Protocol):
    """A call as the audit sees it."""

    generation_id: str
    reason: str
    time_ns: int
    is_noted: bool
    outcome: str

    @property
    def identity(self) -> Identity:
        """The caller."""

    @property
    def caller(self) -> Caller:
        """The call, and the address that it came from."""


def read_reason(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the reason that a call's metadata gives; "" without one."""
    found = [value for key, value in metadata if key == REASON_KEY]
    return parse_reason(found[-1]) if found else ""


def note_call(trail: AuditTrail, call: NotedCall, request: Any, status_code: int) -> None:
    """Note a call once: as it begins to answer, or at its end.

    Args:
        trail: the audit.
        call: the call.
        request: its message, which may name a generation or a training run.
        status_code: gRPC status code that the caller gets.
    """
    if call.is_noted or not trail.is_on:
        return
    call.is_noted = True
    deed = make_deed(
        call.caller,
        call.identity,
        call.time_ns,
        status_code,
        # A refused request may name an id of any length.
        generation_id=call.generation_id or _read_id(request, "generation_id"),
        detail=_read_id(request, "training_run_id") or _read_id(request, "parent_generation_id"),
        reason=call.reason,
    )
    if deed is not None:
        trail.note(deed)


def note_outcome(trail: AuditTrail, call: NotedCall) -> None:
    """Note the result of a call that has one in words, in a record of its own."""
    if not call.outcome or not trail.is_on:
        return
    deed = make_deed(
        call.caller,
        call.identity,
        call.time_ns,
        0,
        generation_id=call.generation_id,
        detail=call.outcome,
        reason=call.reason,
    )
    if deed is not None:
        trail.note(deed)


def _read_id(request: Any, field: str) -> str:
    found = getattr(request, field, "")
    return found[:_MAX_ID_CHARACTERS] if isinstance(found, str) else ""
