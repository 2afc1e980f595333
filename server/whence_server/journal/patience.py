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

    Only one of a server's streams asks a database that was away: an attempt can hold a reader's
    thread until the network's timeout, and look-ups need the threads too.

    Args:
        writer: the writer of this server's log; once it has failed for good, no stream waits.
        patience_s: seconds for which a read waits.
    """

    def __init__(self, writer: Writer, patience_s: float) -> None:
        self._writer = writer
        self._patience_s = patience_s
        self._asking = asyncio.Lock()
        self._error: JournalUnreachableError | None = None
        """The newest read's error; None if the database was there."""

    async def read(self, read: Callable[[], Awaitable[T]]) -> T:
        """Return what a function reads.

        Raises:
            JournalUnreachableError: the database has been away for longer than the patience.
            JournalError: the writer has failed.
        """
        error = self._error
        if error is None or not self._patience_s:
            try:
                return await self._try(read)
            except JournalUnreachableError as first:
                error = first
        give_up, pause_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while (left_s := give_up - time.monotonic()) > 0:
            self._writer.check()
            try:
                async with asyncio.timeout(left_s):
                    await self._asking.acquire()
            except TimeoutError:
                break
            try:
                if self._error is not None:
                    return await self._try(read)
            except JournalUnreachableError as again:
                error = again
                # The stream that asks next waits as well.
                await asyncio.sleep(min(pause_s, max(0.0, give_up - time.monotonic())))
                pause_s = min(2 * pause_s, _LAST_PAUSE_S)
                continue
            finally:
                self._asking.release()
            # Another stream has found the database: all read at once.
            try:
                return await self._try(read)
            except JournalUnreachableError as again:
                error = again
        raise JournalUnreachableError(error.detail) from error

    async def _try(self, read: Callable[[], Awaitable[T]]) -> T:
        try:
            found = await read()
        except JournalUnreachableError as error:
            self._error = error
            raise
        self._error = None
        return found
