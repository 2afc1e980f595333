"""Recording of many steps in slices, between which other tasks run."""

import asyncio
from collections.abc import Iterator

from whence_server.generation.running import RunningGeneration

# Steps recorded before other tasks get a turn: about 1.5 ms.
_STEPS_IN_A_SLICE = 16


async def record_in_slices(running: RunningGeneration, recording: Iterator[None]) -> None:
    """Record steps until the generation ends, and let other tasks run between slices."""
    for number, _ in enumerate(recording, 1):
        if number % _STEPS_IN_A_SLICE == 0:
            await asyncio.sleep(0)
            if running.done.is_set():
                return
