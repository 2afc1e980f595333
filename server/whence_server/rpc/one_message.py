"""The one message of a call that takes one, waited for no longer than a client needs to send it.

gRPC's own handlers for these calls wait for it without end: a caller who opens streams and says
nothing would keep them all, and with them the calls that the server takes at once. So every method
is registered as one that reads a stream, which is the same on the wire.
"""

import asyncio
from typing import Any

import grpc

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.rpc.status import abort

MESSAGE_S = 60.0
"""From the headers on: a client sends both at once, but a large message takes a while."""


async def one_message(context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
    """Return the call's message; end the call where none comes."""
    try:
        async with asyncio.timeout(MESSAGE_S):
            message = await context.read()
    except TimeoutError:
        await _refuse(context, f"no message came within {MESSAGE_S:g} s")
    if message is grpc.aio.EOF:
        await _refuse(context, "the call ended without a message; an empty one has five bytes")
    return message


async def _refuse(context: "grpc.aio.ServicerContext[Any, Any]", why: str) -> None:
    await abort(context, InvalidRequestError(FieldViolation("", why)))
