"""Streams of the contract as server-sent events, files and joined messages."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import lru_cache
from typing import Any

from aiohttp import web
from google.protobuf.message import Message

from whence_server.http.api.bundling import BundlingWriter
from whence_server.http.api.errors import END
from whence_server.http.api.messages import INLINE_BYTES, write_json
from whence_server.http.exchange import Exchange
from whence_server.http.streams import COMMENT, make_event, open_stream
from whence_server.rpc.calls import Call
from whence_server.rpc.stream_writer import StreamWriter

# An error that comes sooner has its own status; a reader of a silent stream is not kept waiting.
_OPEN_AFTER_S = 0.5

RESUMED: Mapping[str, str] = {
    "ResumeGenerationRequest": "after_offset",
    "WatchGenerationsRequest": "after_position",
    "WatchTrainingRunRequest": "after_position",
}
"""Field of a request that `Last-Event-ID` sets."""
_POSITIONS: Mapping[str, Callable[[Any], object]] = {
    "GenerateResponse": lambda it: it.event.last_offset,
    "ForkGenerationResponse": lambda it: it.event.last_offset,
    "ResumeGenerationResponse": lambda it: it.event.last_offset,
    "WatchGenerationsResponse": lambda it: it.position,
    "WatchTrainingRunResponse": lambda it: it.last_position,
}
"""A message's value of that field."""
# The watchers of one server get the same messages.
_MAX_REMEMBERED = 256
LAST_EVENT_ID = "Last-Event-ID"


async def stream_events(
    exchange: Exchange,
    messages: AsyncGenerator[bytes, None],
    call: Call,
    message_type: type[Message],
    interval_s: float,
) -> web.StreamResponse:
    """Answer with an event for each message, and one named "end" after the last.

    Args:
        exchange: the request.
        messages: serialised messages; closed at the end.
        call: the call that makes them.
        message_type: type of the messages.
        interval_s: seconds of silence after which something is written; 0 for never.
    """

    def make_filler() -> bytes:
        return b"" if call.make_filler is None else call.make_filler()

    async with aclosing(messages):
        following = asyncio.ensure_future(anext(messages, None))
        try:
            await asyncio.wait({following}, timeout=_OPEN_AFTER_S)
            if following.done():
                following.result()
            exchange.take_generation_id()
            response = await open_stream(exchange)

            async with BundlingWriter(response) as bundling:

                async def write(raw: bytes) -> None:
                    # Messages that only keep a stream open have no field.
                    event = await _make_event(message_type, raw) if raw else COMMENT
                    await bundling.write(event)

                with StreamWriter(write, make_filler, interval_s) as writer:
                    first = await following
                    if first is not None:
                        await writer.write(first)
                        async for raw in messages:
                            await writer.write(raw)
        finally:
            if not following.done():
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
    await response.write(make_event(b"{}", END, END))
    await response.write_eof()
    return response


async def _make_event(message_type: type[Message], raw: bytes) -> bytes:
    if len(raw) > INLINE_BYTES:
        return await asyncio.to_thread(_write_event, message_type, raw)
    key: Any = message_type
    return _write_remembered(key, raw)


def _write_event(message_type: type[Message], raw: bytes) -> bytes:
    get_position = _POSITIONS.get(message_type.DESCRIPTOR.name, _get_nothing)
    position = str(get_position(message_type.FromString(raw)))
    return make_event(write_json(message_type, raw), position=position)


def _get_nothing(_message: object) -> str:
    return ""


@lru_cache(maxsize=_MAX_REMEMBERED)
def _write_remembered(message_type: Any, raw: bytes) -> bytes:
    return _write_event(message_type, raw)


async def read_joined(messages: AsyncGenerator[bytes, None], message_type: type[Message]) -> bytes:
    """Return one message with the lists of all, whose other fields are the first one's."""
    first, others = message_type(), message_type()
    async with aclosing(messages):
        async for raw in messages:
            if not first.ByteSize():
                first.MergeFromString(raw)
            else:
                others.MergeFromString(raw)
    for field, value in others.ListFields():
        if field.is_repeated:
            getattr(first, field.name).extend(value)
    return first.SerializeToString()


async def read_file(messages: AsyncGenerator[bytes, None], message_type: type[Message]) -> bytes:
    """Return the bytes of the field `data` of all messages."""
    async with aclosing(messages):
        return b"".join([_get_data(message_type, raw) async for raw in messages])


def _get_data(message_type: type[Message], raw: bytes) -> bytes:
    message: Any = message_type.FromString(raw)
    data: bytes = message.data
    return data
