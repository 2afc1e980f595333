"""What a generation needs from its surroundings, so that tests can put others in their place."""

from collections.abc import AsyncIterator
from typing import Protocol

from whence_server.engine.messages import Admit, StopGeneration, StopSequence, Turn


class Engine(Protocol):
    """The decoding engine, as seen from the front."""

    def send(self, message: Admit | StopSequence | StopGeneration) -> None:
        """Hands over a message; never blocks."""

    def turns(self) -> AsyncIterator[Turn]:
        """Everything that the engine makes; raises EngineLostError when it dies."""

    async def restart(self) -> None:
        """Starts it again after a death; raises EngineLostError if it cannot be had back."""
