"""Answers of one read: JSON or a file, with an ETag, and compressed for those who take it."""

import asyncio
import gzip
import hashlib
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import hdrs, web

from whence_server.http.exchange import Exchange

JSON = "application/json"
_KEEP_ASKING = "private, no-cache"
"""A browser keeps the answer, and asks each time if it is still the same."""
_LEAST_COMPRESSED_BYTES = 1_024
_INLINE_BYTES = 64 << 10
# The fastest: it halves what level 9 does in a tenth of the time.
_LEVEL = 1
# With a weight (RFC 9110, 12.4.2) that is not 0.
_GZIP = re.compile(r"(?:^|,)\s*gzip\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[\d.]+\s*)?(?:,|$)")


async def answer_read(
    exchange: Exchange, raw: bytes, make_body: Callable[[bytes], Awaitable[bytes]], kind: str = JSON
) -> web.StreamResponse:
    """Answer with a body, or say that the reader has it already.

    Args:
        exchange: the request.
        raw: what the body is made of: equal bytes make an equal body.
        make_body: makes the body.
        kind: media type of the body.
    """
    tag = f'"{hashlib.sha256(raw).hexdigest()[:32]}"'
    headers = {**exchange.make_headers(), hdrs.CACHE_CONTROL: _KEEP_ASKING, hdrs.ETAG: tag}
    headers[hdrs.VARY] = "Accept-Encoding, Authorization, Cookie"
    if _has(exchange.request, tag):
        exchange.status = HTTPStatus.NOT_MODIFIED
        return web.Response(status=exchange.status, headers=headers)
    body = await make_body(raw)
    if len(body) >= _LEAST_COMPRESSED_BYTES and _takes_gzip(exchange.request):
        body = await _compress(body)
        headers[hdrs.CONTENT_ENCODING] = "gzip"
    return web.Response(body=body, content_type=kind, headers=headers)


async def keep(raw: bytes) -> bytes:
    """Return the bytes: an answer that is made of itself."""
    return raw


def _has(request: web.Request, tag: str) -> bool:
    # A proxy that compresses makes a tag weak.
    told = request.headers.get(hdrs.IF_NONE_MATCH, "")
    return any(it.strip().removeprefix("W/") == tag for it in told.split(","))


def _takes_gzip(request: web.Request) -> bool:
    return _GZIP.search(request.headers.get(hdrs.ACCEPT_ENCODING, "").lower()) is not None


async def _compress(body: bytes) -> bytes:
    if len(body) <= _INLINE_BYTES:
        return gzip.compress(body, _LEVEL)
    return await asyncio.to_thread(gzip.compress, body, _LEVEL)
