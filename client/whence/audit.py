"""The audit: who did what on the server, by its own record."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypedDict
from urllib.parse import quote

from whence.arguments import require_text
from whence.requests import set_times
from whence.v1.audit_pb2 import AuditAction, ListAuditRequest

REASON_KEY = "whence-reason"
"""Metadata with the reason that a caller gives for its calls."""
_PREFIX = "AUDIT_ACTION_"
ACTIONS = tuple(
    name.removeprefix(_PREFIX).lower() for name, number in AuditAction.items() if number
)
"""Names of the actions, as "read_content"."""


class AuditOptions(TypedDict, total=False):
    """Filter of audit records; None and missing options match everything."""

    start_after: datetime | None
    """Time with a time zone; records must be later."""
    start_before: datetime | None
    caller_id: str | None
    generation_id: str | None
    actions: Iterable[str] | None
    """Names of actions, of `ACTIONS`."""


def make_audit_request(options: AuditOptions, page_size: int = 0) -> ListAuditRequest:
    """Return the request of a first page.

    Raises:
        TypeError: an unknown option, or a value of the wrong type.
        ValueError: a time without a time zone, an unknown action, or text that the wire cannot
            carry.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if unknown := sorted(given.keys() - AuditOptions.__annotations__.keys()):
        raise TypeError(f"unknown option {unknown[0]!r}")
    request = ListAuditRequest(
        page_size=page_size,
        caller_id=require_text("caller_id", given.get("caller_id", "")),
        generation_id=require_text("generation_id", given.get("generation_id", "")),
        actions=[_parse_action(name) for name in options.get("actions") or ()],
    )
    set_times(request, given)
    return request


def get_action_name(action: int) -> str:
    """Return an action's name, as "read_content"; its number if a later version made it."""
    if action not in AuditAction.values():
        return str(action)
    return AuditAction.Name(AuditAction.ValueType(action)).removeprefix(_PREFIX).lower()


def make_reason_metadata(reason: str | None) -> Mapping[str, str]:
    """Return the metadata that tells the server the reason for a call; empty without one."""
    # Metadata is ASCII: the server decodes what is encoded as in a URL.
    return {REASON_KEY: quote(reason, safe=" /:,;=()#'")} if reason else {}


def _parse_action(name: str) -> AuditAction.ValueType:
    if name not in ACTIONS:
        raise ValueError(f"unknown action {name!r}; actions are {', '.join(ACTIONS)}")
    return AuditAction.Value(_PREFIX + name.upper())
