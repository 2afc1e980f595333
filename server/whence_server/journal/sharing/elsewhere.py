"""Changes that other servers make to the database."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from whence_server.journal.sharing.store import Change, SharedStore
from whence_server.journal.signal import Signal


class Elsewhere:
    """Signal of changes by other servers, for the event loop's thread.

    A notification may be lost with its connection: whoever waits looks again after a while.
    """

    def __init__(self, store: SharedStore) -> None:
        """Begin to listen in the running event loop."""
        self._signals = {change: Signal() for change in Change}
        self._loop = asyncio.get_running_loop()
        self._stop: Callable[[], None] = store.listen(self._note)

    def _note(self, change: Change) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._signals[change].notify)

    async def wait(self, change: Change, longest_s: float) -> None:
        """Wait for the next change of a kind, and for a number of seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await self._signals[change].wait()

    async def close(self) -> None:
        """Stop listening."""
        await asyncio.to_thread(self._stop)
