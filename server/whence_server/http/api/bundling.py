"""Writing of many small events at once: a turn of the engine makes one for each generation."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

from aiohttp import web

_MOST_BYTES = 64 << 10


class BundlingWriter:
    """Writer of an answer's events; a context manager, which writes the last ones at its end.

    Events that come without a pause are written together, with one call of the kernel.

    Args:
        response: the answer.
    """

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response
        self._events: list[bytes] = []
        self._num_bytes = 0
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        writing = self._writing
        if writing is None:
            return
        if isinstance(exc, asyncio.CancelledError):
            # Nobody reads any more.
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        else:
            with suppress(ConnectionResetError):
                await writing

    async def write(self, event: bytes) -> None:
        """Write an event, soon; wait while a slow reader has many to read.

        Raises:
            ConnectionResetError: the reader is gone.
        """
        self._events.append(event)
        self._num_bytes += len(event)
        if self._writing is None or self._writing.done():
            if self._writing is not None:
                self._writing.result()
            self._writing = asyncio.ensure_future(self._write_all())
        if self._num_bytes >= _MOST_BYTES:
            await asyncio.shield(self._writing)

    async def _write_all(self) -> None:
        while self._events:
            bundle = b"".join(self._events)
            self._events.clear()
            self._num_bytes = 0
            await self._response.write(bundle)
