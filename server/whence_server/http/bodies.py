"""Body of a request: one JSON object, bounded in size and in time."""

import asyncio
from typing import Any

import orjson
from aiohttp import hdrs, web

from whence_server.domain.errors import (
    DeadlinePassedError,
    FieldViolation,
    InvalidRequestError,
    MediaTypeError,
    RequestTooLargeError,
)

_JSON = "application/json"
_READ_S = 30.0
# Parsing a body of this size takes a few milliseconds.
_INLINE_BYTES = 256 << 10


async def read_json_object(request: web.Request, max_bytes: int) -> dict[str, Any]:
    """Read a request's body.

    Raises:
        DeadlinePassedError: the body did not arrive within 30 seconds.
        InvalidRequestError: it is not a JSON object.
        MediaTypeError: its type is not that of JSON. A page of any site can make a browser send a
            body of a few other types.
        RequestTooLargeError: it has more than `max_bytes` bytes.
    """
    if request.content_type != _JSON:
        raise MediaTypeError(request.headers.get(hdrs.CONTENT_TYPE, ""))
    if (request.content_length or 0) > max_bytes:
        raise RequestTooLargeError(request.content_length or 0, max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise RequestTooLargeError(len(body), max_bytes)
    except TimeoutError:
        raise DeadlinePassedError from None
    try:
        if len(body) > _INLINE_BYTES:
            document = await asyncio.to_thread(orjson.loads, body)
        else:
            document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(FieldViolation("", f"the body is not JSON: {error}")) from None
    if not isinstance(document, dict):
        raise InvalidRequestError(FieldViolation("", "the body must be a JSON object"))
    return document
