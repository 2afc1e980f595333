"""Keeps an engine running: after a death it is started again, with the same weights."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from whence_server.domain.engine import (
    EngineState,
    FrontMessage,
    Turn,
)
from whence_server.domain.errors import ConfigurationError, EngineLostError
from whence_server.domain.model import ModelInfo
from whence_server.engine.handshake import EngineOptions
from whence_server.engine.link import EngineProcess

logger = logging.getLogger(__name__)

MAX_START_FAILURES = 3
"""In a row; then the engine is lost for good."""
FIRST_BACKOFF_S = 0.1
"""Doubles with every failure to start."""
LONGEST_BACKOFF_S = 5.0
"""Where the system has no room for a process, which is no fault of the engine's and will pass."""


class EngineSupervisor:
    """An engine that outlives its process.

    Args:
        options: of every process.
        on_change: told False when the engine has died, True once it is back.
        stall_timeout_s: after so long without a sign of work a process is restarted; 0 is never.

    Attributes:
        state: what it is doing.
    """

    def __init__(
        self,
        options: EngineOptions,
        on_change: Callable[[bool], Awaitable[None]],
        stall_timeout_s: float = 0.0,
    ) -> None:
        self._options = options
        self._on_change = on_change
        self._stall_timeout_s = stall_timeout_s
        self._process = EngineProcess(options, stall_timeout_s)
        self._model: ModelInfo | None = None
        self.state = EngineState.STARTING

    @property
    def pid(self) -> int | None:
        """The id of the process that runs now."""
        return self._process.pid

    async def start(self) -> ModelInfo:
        """Start the first process; see `EngineProcess.start`.

        Raises:
            ConfigurationError: the model cannot be served.
        """
        try:
            self._model = await self._process.start()
        except OSError as error:
            raise ConfigurationError(f"the engine process cannot be started: {error}") from error
        self.state = EngineState.RUNNING
        return self._model

    def send(self, message: FrontMessage) -> None:
        """Hand a message to the process that runs now; never blocks."""
        self._process.send(message)

    def read_turns(self) -> AsyncIterator[Turn]:
        """What the process that runs now makes.

        Raises:
            EngineLostError: it ended unasked; `restart` may bring another.
        """
        return self._process.read_turns()

    async def restart(self) -> None:
        """Start another process in the place of one that died.

        Raises:
            EngineLostError: it does not start any more, or the weights are not the same.
        """
        self.state = EngineState.RESTARTING
        await self._on_change(False)
        await self._process.stop()
        for attempt in range(MAX_START_FAILURES):
            await asyncio.sleep(FIRST_BACKOFF_S * 2**attempt)
            try:
                model = await self._start_another()
            except ConfigurationError as error:
                logger.critical("the engine does not start again: %s", error)
                continue
            self._check_same(model)
            self.state = EngineState.RUNNING
            logger.warning("the engine is running again, process %s", self._process.pid)
            await self._on_change(True)
            return
        self.state = EngineState.LOST
        raise EngineLostError(f"it failed to start {MAX_START_FAILURES} times in a row")

    async def _start_another(self) -> ModelInfo:
        """Start a process, as soon as the system has room for one.

        Raises:
            ConfigurationError: it could not load the model, or ended before it had.
        """
        delay_s = FIRST_BACKOFF_S
        while True:
            self._process = EngineProcess(self._options, self._stall_timeout_s)
            try:
                return await self._process.start()
            except OSError as error:
                logger.critical("no engine process can be started: %s", error)
                # It may have come into being before something else failed.
                await self._process.stop()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_BACKOFF_S)

    def _check_same(self, model: ModelInfo) -> None:
        before = self._model
        if before is not None and model.weights_digest != before.weights_digest:
            self.state = EngineState.LOST
            raise EngineLostError(
                "the model's files have changed since the start: what was begun with weights "
                f"{before.weights_digest} cannot go on with {model.weights_digest}"
            )

    async def stop(self) -> None:
        """End the process that runs now."""
        self.state = EngineState.STOPPED
        await self._process.stop()
