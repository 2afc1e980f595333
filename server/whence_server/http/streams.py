"""Server-sent events (WHATWG HTML, "Server-sent events"), with comments while nothing happens."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from aiohttp import web

from whence_server.http.exchange import Exchange

_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    # nginx would hold events back until its buffer is full.
    "X-Accel-Buffering": "no",
}
COMMENT = b": waiting\n\n"
"""Comment, which readers of events pass over."""

T = TypeVar("T")


async def open_stream(exchange: Exchange) -> web.StreamResponse:
    """Send the headers of an answer of server-sent events."""
    response = web.StreamResponse(headers={**_HEADERS, **exchange.make_headers()})
    exchange.response = response
    await response.prepare(exchange.request)
    return response


def make_event(data: bytes, name: str = "", position: str = "") -> bytes:
    """Return one event whose data is a line of JSON.

    Args:
        data: the line.
        name: name of the event; "" for the one that readers expect.
        position: what a reader that comes back sends as `Last-Event-ID`; "" for no change.
    """
    event = b"event: %s\n" % name.encode() if name else b""
    if position:
        event += b"id: %s\n" % position.encode()
    return event + b"data: %s\n\n" % data


async def write_comments_in_silence(
    response: web.StreamResponse, source: AsyncGenerator[T, None], interval_s: float
) -> AsyncGenerator[T, None]:
    """Yield from `source`; write a comment to the answer whenever it is silent for the interval.

    Proxies close an answer on which nothing is sent. Readers of events pass over comments.

    Args:
        response: the answer.
        source: what is yielded; closed at the end.
        interval_s: seconds of silence; 0 writes no comments.
    """
    async with aclosing(source):
        while True:
            following = asyncio.ensure_future(anext(source))
            try:
                while not (await asyncio.wait({following}, timeout=interval_s or None))[0]:
                    await response.write(COMMENT)
                try:
                    item = following.result()
                except StopAsyncIteration:
                    return
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.gather(following, return_exceptions=True)
            yield item
