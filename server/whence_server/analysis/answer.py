"""Answer on its way to a caller who may read slowly."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator

from whence_server.domain.errors import AnalysisFailedError

MOST_BYTES = 4 << 20
"""Size of the findings that wait for a caller."""


class Answer:
    """Findings that wait for their caller, in bounded memory.

    Args:
        patience_s: time for which all findings together may wait for room.
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._messages: deque[bytes] = deque()
        self._num_bytes = 0
        self._is_over = False
        self._changed = asyncio.Event()
        self._has_room = asyncio.Event()

    async def put(self, message: bytes) -> None:
        """Add a finding when there is room for it.

        Raises:
            AnalysisFailedError: the caller has not made room for too long.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while self._num_bytes >= MOST_BYTES:
            self._has_room.clear()
            try:
                await asyncio.wait_for(self._has_room.wait(), max(self._patience_s, 0.001))
            except TimeoutError:
                raise AnalysisFailedError(
                    "the findings were not read, and others wait: read them as they come"
                ) from None
        self._patience_s -= loop.time() - begun
        self.add(message)

    def add(self, message: bytes) -> None:
        """Add a finding at once."""
        self._messages.append(message)
        self._num_bytes += len(message)
        self._changed.set()

    def end(self) -> None:
        """Take note that no further finding comes."""
        self._is_over = True
        self._changed.set()

    async def read(self) -> AsyncGenerator[bytes, None]:
        """Yield the findings in their order."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                self._num_bytes -= len(message)
                self._has_room.set()
                yield message
            if self._is_over:
                return
            self._changed.clear()
            await self._changed.wait()
