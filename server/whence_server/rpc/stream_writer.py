"""Writer of a call's messages, which breaks a silence.

Proxies close a stream that has no message for a minute or so, and do not count HTTP/2 pings.
"""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self


class StreamWriter:
    """Writer of one call's stream; a context manager, which ends the breaking of silences.

    Args:
        write: writes one message. gRPC allows one call of it at a time.
        make_filler: returns the message that breaks a silence; None for no message.
        interval_s: seconds without a message after which a silence is broken; 0 for never.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        make_filler: Callable[[], bytes | None],
        interval_s: float,
    ) -> None:
        self._write = write
        self._make_filler = make_filler
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()
        self._is_writing = False
        self._filling: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        if self._interval_s:
            self._timer = self._loop.call_later(self._interval_s, self._check)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._filling is not None:
            self._filling.cancel()

    async def write(self, message: bytes) -> None:
        """Write a message of the stream itself."""
        if self._filling is not None:
            await asyncio.wait({self._filling})
        self._is_writing = True
        await self._write(message)
        self._is_writing = False
        self._last_s = self._loop.time()

    def _check(self) -> None:
        """Break the silence if it is long enough, and look again when it could be."""
        left_s = self._last_s + self._interval_s - self._loop.time()
        if left_s <= 0:
            left_s = self._interval_s
            # A message that waits for a slow reader breaks the silence by itself.
            message = None if self._is_writing or self._filling else self._make_filler()
            if message is not None:
                self._filling = asyncio.ensure_future(self._fill(message))
        self._timer = self._loop.call_later(left_s, self._check)

    async def _fill(self, message: bytes) -> None:
        try:
            await self._write(message)
        except Exception:  # noqa: BLE001, S110 - the stream's own next message meets the same fault
            pass
        finally:
            self._filling = None
            self._last_s = self._loop.time()
