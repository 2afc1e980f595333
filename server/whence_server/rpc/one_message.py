"""Reading the request of a call with one request message, with a timeout.

gRPC's own handlers for these calls wait without a timeout: a caller who opens streams and sends
nothing would use up the server's concurrent calls. So every method is registered as one that
reads a stream, which is the same on the wire.
"""

import asyncio
from typing import Any

import grpc

from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.rpc.status import abort

MESSAGE_S = 60.0
"""Seconds from the headers to the complete message, which may be large."""


async def read_one_message(context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
    """Return the call's message; end the call if none arrives."""
    try:
        async with asyncio.timeout(MESSAGE_S):
            message = await context.read()
    except TimeoutError:
        await _refuse(context, f"no request message within {MESSAGE_S:g} s")
    if message is grpc.aio.EOF:
        await _refuse(context, "the call ended without a request message; send one, if empty")
    return message


async def _refuse(context: "grpc.aio.ServicerContext[Any, Any]", why: str) -> None:
    await abort(context, InvalidRequestError(FieldViolation("", why)))
