"""Page tokens of lists of generations, which stay valid while generations arrive."""

import base64
import hashlib
import json
import struct
from typing import NamedTuple

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.journal.rows import ListFilter

_HEAD = struct.Struct(">8sq")
_MAX_TOKEN_CHARACTERS = 1_024
# An id has 36. That of a damaged row may be longer: the next page then begins where its head stands
# in the order of ids.
_MAX_ID_BYTES = 512


class PageKey(NamedTuple):
    """Sort key of the last generation of a page, after which the next page begins."""

    start_time_ns: int
    generation_id: bytes
    """Bytes as stored; in a damaged row they may not be UTF-8."""


def encode_page_token(key: PageKey, list_filter: ListFilter) -> str:
    """Return an opaque token for the page beyond `key`."""
    head = _HEAD.pack(digest_filter(list_filter), key.start_time_ns)
    return base64.urlsafe_b64encode(head + key.generation_id[:_MAX_ID_BYTES]).decode()


def decode_page_token(token: str, list_filter: ListFilter) -> PageKey:
    """Return the key after which the page begins.

    Raises:
        InvalidRequestError: the token is malformed or belongs to another filter.
    """
    if len(token) > _MAX_TOKEN_CHARACTERS:
        raise _make_token_error("is not a token that this server returned")
    try:
        raw = base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True)
        digest, start_time_ns = _HEAD.unpack_from(raw)
        key = PageKey(start_time_ns, raw[_HEAD.size :])
    except (ValueError, struct.error):
        raise _make_token_error("is not a token that this server returned") from None
    if digest != digest_filter(list_filter):
        raise _make_token_error("belongs to a list with another filter; start without a token")
    return key


def digest_filter(list_filter: ListFilter) -> bytes:
    """Return a digest that differs for different filters."""
    parts: list[object] = [
        list_filter.start_after_ns,
        list_filter.start_before_ns,
        list_filter.model,
        list_filter.trace_id,
        sorted(list_filter.labels.items()),
    ]
    if list_filter.owner is not None:
        parts.append(list_filter.owner)
    if list_filter.parent:
        parts.append({"parent": list_filter.parent})
    return hashlib.sha256(json.dumps(parts).encode()).digest()[:8]


def _make_token_error(description: str) -> InvalidRequestError:
    return InvalidRequestError(FieldViolation("page_token", description))
