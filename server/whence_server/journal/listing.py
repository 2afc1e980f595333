"""Pages of generations, newest first, that stay in place while new generations arrive."""

import base64
import hashlib
import json
import struct
from typing import NamedTuple

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.journal.rows import ListFilter

_HEAD = struct.Struct(">8sq")
_INT64 = 2**63 - 1


class PageKey(NamedTuple):
    """The last generation of a page: the next page begins beyond it."""

    start_time_ns: int
    generation_id: str


def encode_page_token(key: PageKey, list_filter: ListFilter) -> str:
    """An opaque token for the page beyond `key`."""
    head = _HEAD.pack(_filter_digest(list_filter), key.start_time_ns)
    return base64.urlsafe_b64encode(head + key.generation_id.encode()).decode()


def decode_page_token(token: str, list_filter: ListFilter) -> PageKey:
    """Where the page begins.

    Raises:
        InvalidRequestError: the token is not one, or belongs to another filter.
    """
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        digest, start_time_ns = _HEAD.unpack_from(raw)
        key = PageKey(start_time_ns, raw[_HEAD.size :].decode())
    except (ValueError, struct.error):
        raise _bad_token("is no token that this server gave out") from None
    if digest != _filter_digest(list_filter):
        raise _bad_token("belongs to a list with another filter; begin without a token")
    return key


def where(list_filter: ListFilter, key: PageKey | None) -> tuple[str, list[int | str]]:
    """The filter as an SQL condition over `generations`, and its bindings."""
    clauses, bindings = ["deleted = 0"], list[int | str]()

    def add(clause: str, *values: int | str) -> None:
        clauses.append(clause)
        bindings.extend(values)

    if key is not None:
        add("(start_time_ns, generation_id) < (?, ?)", *key)
    if list_filter.start_after_ns is not None:
        add("start_time_ns > ?", _int64(list_filter.start_after_ns))
    if list_filter.start_before_ns is not None:
        add("start_time_ns < ?", _int64(list_filter.start_before_ns))
    if list_filter.model:
        add("model = ?", list_filter.model)
    if list_filter.trace_id:
        add("trace_id = ?", list_filter.trace_id)
    for name, value in list_filter.labels.items():
        add("EXISTS (SELECT 1 FROM json_each(labels) WHERE key = ? AND value = ?)", name, value)
    return " AND ".join(clauses), bindings


def _filter_digest(list_filter: ListFilter) -> bytes:
    parts = [
        list_filter.start_after_ns,
        list_filter.start_before_ns,
        list_filter.model,
        list_filter.trace_id,
        sorted(list_filter.labels.items()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:8]


def _int64(value: int) -> int:
    # A Timestamp reaches from the year 1 to 9999, nanoseconds in 64 bits from 1677 to 2262.
    return max(-_INT64, min(value, _INT64))


def _bad_token(description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("page_token", description))
