"""Absence of an engine, in a server that only puts generations of other processes on record."""

from collections.abc import Awaitable, Callable

from whence_server.domain.engine import EngineState


class AbsentEngine:
    """Stand-in for an engine where none is needed.

    Attributes:
        on_change: never called.
        state: always `EngineState.ABSENT`.
    """

    pid = None

    def __init__(self) -> None:
        self.on_change: Callable[[bool], Awaitable[None]] = _ignore
        self.state = EngineState.ABSENT

    async def stop(self) -> None:
        """Do nothing."""


async def _ignore(_up: bool) -> None:
    pass
