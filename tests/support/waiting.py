"""Waiting for conditions that no event announces."""

import asyncio
from collections.abc import Callable


async def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Wait until a condition holds, and let the event loop run meanwhile.

    Raises:
        TimeoutError: the condition does not hold in time.
    """
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)
