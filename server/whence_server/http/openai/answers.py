"""Sending of a generation's answer, whole or in events while it is generated."""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any, Protocol

import orjson
from aiohttp import web

from whence.v1.generation_pb2 import GenerationStarted
from whence_server.domain.model import ModelInfo
from whence_server.http.exchange import Exchange
from whence_server.http.openai.requests import Wanted
from whence_server.http.openai.running import Event, Front, read_events, read_finished, start
from whence_server.http.streams import open_stream, write_comments_in_silence
from whence_server.text.tokenizer import TextTokenizer

_HELD_S = 5.0
"""Longest time for which a streamed answer's status waits for the first token."""


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
    async with aclosing(read_events(front, exchange)) as source:
        beginning = asyncio.ensure_future(_read_beginning(source))
        try:
            await asyncio.wait({beginning}, timeout=_HELD_S)
            if beginning.done():
                # A generation that failed before its first token is answered with its status.
                beginning.result()
            response = await open_stream(exchange)
            batches = write_comments_in_silence(
                response, _read_all(beginning, source), front.progress_interval_s
            )
            async with aclosing(batches):
                async for events in batches:
                    written = b"".join(writer.make_events(events))
                    if written:
                        await response.write(written)
        finally:
            beginning.cancel()
            await asyncio.gather(beginning, return_exceptions=True)
    await response.write_eof()
    return response


async def _read_beginning(source: AsyncGenerator[list[Event], None]) -> list[Event]:
    """Return the events up to the first ones that are not the generation's start."""
    beginning: list[Event] = []
    async for events in source:
        beginning += events
        if any(not isinstance(event, GenerationStarted) for event in events):
            break
    return beginning


async def _read_all(
    beginning: asyncio.Future[list[Event]], source: AsyncGenerator[list[Event], None]
) -> AsyncGenerator[list[Event], None]:
    yield await beginning
    async for events in source:
        yield events


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
