"""Sending of a generation's answer, whole or in events while it is generated."""

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from aiohttp import web

from whence_server.domain.model import ModelInfo
from whence_server.http.exchange import Exchange
from whence_server.http.openai.requests import Wanted
from whence_server.http.openai.running import Event, Front, read_events, read_finished, start
from whence_server.http.streams import open_stream, write_comments_in_silence
from whence_server.text.tokenizer import TextTokenizer


class Writer(Protocol):
    """Writer of a route's answers to one request."""

    def make_document(self, events: Sequence[Event]) -> dict[str, Any]:
        """Return the whole answer, from all events of the generation."""

    def make_events(self, events: Sequence[Event]) -> Iterable[bytes]:
        """Return the events of a streamed answer, from the generation's next events."""


async def send_answer(
    front: Front, exchange: Exchange, wanted: Wanted, writer: Writer
) -> web.StreamResponse:
    """Send the answer to a request whose generation has been started.

    Raises:
        WhenceError: the generation failed or was stopped.
    """
    if not wanted.streams:
        document = writer.make_document(await read_finished(front, exchange))
        return web.Response(
            body=orjson.dumps(document),
            content_type="application/json",
            headers=exchange.make_headers(),
        )
    response = await open_stream(exchange)
    batches = write_comments_in_silence(
        response, read_events(front, exchange), front.progress_interval_s
    )
    async with aclosing(batches):
        async for events in batches:
            written = b"".join(writer.make_events(events))
            if written:
                await response.write(written)
    await response.write_eof()
    return response


async def start_generation(
    front: Front, exchange: Exchange, wanted: Wanted
) -> tuple[ModelInfo, TextTokenizer | None]:
    """Start the generation; return the model that makes it, and the tokenizer if it is known.

    Raises:
        WhenceError: the request is refused.
    """
    await start(front, wanted.request, exchange)
    model, tokenizer = front.serving.model, front.serving.tokenizer
    if model is None:
        raise RuntimeError("a generation was started without a model")
    return model, tokenizer
