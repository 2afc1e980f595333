"""The stop of the server: signals, and waiting that they end."""

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from whence_server.domain.model import ModelInfo


async def wait_or_stop(
    starting: Coroutine[Any, Any, ModelInfo], stop: asyncio.Event
) -> ModelInfo | None:
    """Return the result of `starting`; None if the stop came first."""
    start = asyncio.ensure_future(starting)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({start, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if start.done():
        return start.result()
    start.cancel()
    await asyncio.gather(start, return_exceptions=True)
    return None


@contextmanager
def set_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set the event on SIGTERM or SIGINT; end the process at once on a second signal."""
    loop = asyncio.get_running_loop()

    def handle(number: int) -> None:
        if stop.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, handle, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
