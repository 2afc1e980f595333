"""Look-ups of the ends of all logs, which many watchers share."""

import asyncio
from collections.abc import Awaitable, Callable

from whence_server.journal.store import LogEnd


class LogEnds:
    """Ends of all logs: one look-up at a time, for everybody who asked before it began.

    Every watcher looks after every commit of any server, and lists, errands and takeovers need the
    same threads.

    Args:
        look: looks the ends up.
    """

    def __init__(self, look: Callable[[], Awaitable[list[LogEnd]]]) -> None:
        self._look = look
        self._looking = asyncio.Lock()
        self._next: asyncio.Task[list[LogEnd]] | None = None
        self._tasks: set[asyncio.Task[list[LogEnd]]] = set()

    async def read(self) -> list[LogEnd]:
        """Return the ends as a look-up finds them that begins from now on.

        Raises:
            JournalError: the database is away.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._look_next(), name="journal-log-ends")
            self._tasks.add(self._next)
            self._next.add_done_callback(self._forget)
        # The look-up is that of others too.
        return await asyncio.shield(self._next)

    async def _look_next(self) -> list[LogEnd]:
        async with self._looking:
            self._next = None
            return await self._look()

    def _forget(self, task: asyncio.Task[list[LogEnd]]) -> None:
        self._tasks.discard(task)
        # Everybody who waited for it may have gone.
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """End the look-ups."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
