"""Threads that read the journal's database: the event loop never waits for a disk."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NUM_READERS = 3
_NUM_HEAVY_READERS = 2


class Readers:
    """Two thread pools: look-ups and streams never wait for lists and chain walks."""

    def __init__(self) -> None:
        self._light = ThreadPoolExecutor(_NUM_READERS, "journal-reader")
        self._heavy = ThreadPoolExecutor(_NUM_HEAVY_READERS, "journal-heavy-reader")

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that reads for a few milliseconds at most; return its result."""
        return await _run(self._light, partial(function, *args, **kwargs))

    async def run_heavy(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function that may read for longer; return its result."""
        return await _run(self._heavy, partial(function, *args, **kwargs))

    async def close(self) -> None:
        """Wait for running reads, and end the threads."""
        for pool in (self._light, self._heavy):
            await asyncio.to_thread(pool.shutdown)


async def _run(pool: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(pool, function)
