"""Patience of streams with a database that is away: they wait for it, and then go on."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from whence_server.domain.errors import JournalUnreachableError
from whence_server.journal.writer import Writer

T = TypeVar("T")

_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.1, 1.0


class Patience:
    """Repeats the reads of streams while the database is away.

    Only one of its streams asks a database that was away: an attempt can hold a reader's thread
    until the network's timeout, and look-ups need the threads too.

    Args:
        writer: the writer of this server's log, whose patience the streams have; once it has failed
            for good, they wait no longer.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._asking = asyncio.Lock()

    async def read(self, read: Callable[[], Awaitable[T]]) -> T:
        """Return what a function reads.

        Raises:
            JournalUnreachableError: the database has been away for longer than the patience.
            JournalError: the writer has failed.
        """
        try:
            return await read()
        except JournalUnreachableError as error:
            return await self._repeat(read, error)

    async def _repeat(self, read: Callable[[], Awaitable[T]], error: JournalUnreachableError) -> T:
        give_up = time.monotonic() + self._writer.patience_s
        pause_s = _FIRST_PAUSE_S
        while (left_s := give_up - time.monotonic()) > 0:
            self._writer.check()
            try:
                async with asyncio.timeout(left_s):
                    await self._asking.acquire()
            except TimeoutError:
                break
            try:
                return await read()
            except JournalUnreachableError as again:
                error = again
                # Whoever asks next waits as well.
                await asyncio.sleep(min(pause_s, max(0.0, give_up - time.monotonic())))
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
            finally:
                self._asking.release()
        raise error
