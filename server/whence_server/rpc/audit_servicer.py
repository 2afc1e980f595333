"""AuditService: lists what callers did."""

import base64
import binascii
import hashlib
from typing import Any

from whence.v1 import audit_pb2
from whence_server.domain.audit import AuditFilter
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.journal.audit_log import AuditLog
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import choose_page_size

SERVICE = "whence.v1.AuditService"

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1_000
_MAX_ID_CHARACTERS = 256
_MAX_ACTIONS = 32
_DIGEST_BYTES, _POSITION_BYTES = 8, 8


class AuditServicer:
    """Servicer for the audit records of the journal."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit

    def list_methods(self) -> list[Method[Any]]:
        """Return the service's methods."""
        return [Method("ListAudit", audit_pb2.ListAuditRequest, unary=self.list_audit)]

    async def list_audit(self, request: audit_pb2.ListAuditRequest, call: Call) -> bytes:  # noqa: ARG002 - the method's form
        """Return a page of audit records, newest first."""
        wanted = convert_audit_filter(request)
        page = await self._audit.list(
            wanted,
            choose_page_size(request.page_size, _DEFAULT_PAGE, _LARGEST_PAGE),
            _read_token(request.page_token, wanted) if request.page_token else None,
        )
        token = "" if page.end is None else _make_token(page.end, wanted)
        return audit_pb2.ListAuditResponse(
            records=page.records, next_page_token=token
        ).SerializeToString()


def convert_audit_filter(given: audit_pb2.ListAuditRequest) -> AuditFilter:
    """Convert the conditions of a request; unset fields match everything.

    Raises:
        InvalidRequestError: fields exceed their bounds; the error names all of them.
    """
    found = [
        FieldViolation(field, f"may have at most {_MAX_ID_CHARACTERS} characters")
        for field in ("caller_id", "generation_id")
        if len(getattr(given, field)) > _MAX_ID_CHARACTERS
    ]
    if len(given.actions) > _MAX_ACTIONS:
        found.append(FieldViolation("actions", f"may have at most {_MAX_ACTIONS} entries"))
    if found:
        raise InvalidRequestError(*found)
    return AuditFilter(
        start_after_ns=_get_time_ns(given, "start_after"),
        start_before_ns=_get_time_ns(given, "start_before"),
        caller_id=given.caller_id,
        generation_id=given.generation_id,
        actions=frozenset(given.actions),
    )


def _get_time_ns(given: audit_pb2.ListAuditRequest, field: str) -> int | None:
    if not given.HasField(field):  # type: ignore[arg-type]  # one of the two names
        return None
    timestamp = getattr(given, field)
    return int(timestamp.seconds) * 1_000_000_000 + int(timestamp.nanos)


def _make_token(position: int, wanted: AuditFilter) -> str:
    raw = _digest_filter(wanted) + position.to_bytes(_POSITION_BYTES, "big")
    return base64.urlsafe_b64encode(raw).decode()


def _read_token(token: str, wanted: AuditFilter) -> int:
    try:
        raw = base64.b64decode(token[:64], altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    digest, position = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if len(position) != _POSITION_BYTES or position[0] >= 1 << 6:
        raise _make_token_error("is no token that ListAudit returned")
    if digest != _digest_filter(wanted):
        raise _make_token_error("belongs to a list with another filter; start without a token")
    return int.from_bytes(position, "big")


def _make_token_error(why: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("page_token", why))


def _digest_filter(wanted: AuditFilter) -> bytes:
    parts = (
        wanted.start_after_ns,
        wanted.start_before_ns,
        wanted.caller_id,
        wanted.generation_id,
        sorted(wanted.actions),
    )
    return hashlib.sha256(repr(parts).encode()).digest()[:_DIGEST_BYTES]
