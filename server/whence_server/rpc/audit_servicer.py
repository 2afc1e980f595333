"""AuditService: lists what callers did."""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from whence.v1 import audit_pb2
from whence_server.domain.audit import AuditFilter
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.journal.audit_log import AuditLog, OtherJournalError
from whence_server.rpc.calls import Call, Method
from whence_server.rpc.conversions import choose_page_size

SERVICE = "whence.v1.AuditService"

_DEFAULT_PAGE, _LARGEST_PAGE = 100, 1_000
_MAX_ID_CHARACTERS = 256
_MAX_ACTIONS = 32
_DIGEST_BYTES, _LOG_ID_BYTES, _POSITION_BYTES = 8, 16, 8
_PLACE_BYTES = _LOG_ID_BYTES + _POSITION_BYTES
_MAX_TOKEN_CHARACTERS = 1 << 16
_MAX_POSITION = 1 << 62


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
        limit = choose_page_size(request.page_size, _DEFAULT_PAGE, _LARGEST_PAGE)
        before = _read_token(request.page_token, wanted) if request.page_token else None
        try:
            page = await self._audit.list(wanted, limit, before)
        except OtherJournalError:
            raise _make_token_error(
                "is of another journal; start without a token, or ask the server that returned it"
            ) from None
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


def _make_token(places: Mapping[bytes, int], wanted: AuditFilter) -> str:
    """Return an opaque token, which every server of the database takes."""
    raw = _digest_filter(wanted) + b"".join(
        log_id + position.to_bytes(_POSITION_BYTES, "big") for log_id, position in places.items()
    )
    return base64.urlsafe_b64encode(raw).decode()


def _read_token(token: str, wanted: AuditFilter) -> dict[bytes, int]:
    try:
        raw = base64.b64decode(token[:_MAX_TOKEN_CHARACTERS], altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    digest, rest = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    places = {
        rest[at : at + _LOG_ID_BYTES]: int.from_bytes(
            rest[at + _LOG_ID_BYTES : at + _PLACE_BYTES], "big"
        )
        for at in range(0, len(rest), _PLACE_BYTES)
    }
    if not rest or len(rest) % _PLACE_BYTES or max(places.values()) >= _MAX_POSITION:
        raise _make_token_error("is no token that ListAudit returned")
    if digest != _digest_filter(wanted):
        raise _make_token_error("belongs to a list with another filter; start without a token")
    return places


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
