"""Supervisor of the engine process, which restarts it with the same weights after its death."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager

from whence_server.domain.engine import (
    EngineState,
    FrontMessage,
    Turn,
)
from whence_server.domain.errors import ConfigurationError, EngineLostError
from whence_server.domain.model import ModelInfo
from whence_server.engines.transformers.handshake import EngineOptions
from whence_server.engines.transformers.link import EngineProcess

logger = logging.getLogger(__name__)

MAX_START_FAILURES = 3
"""Successive failed starts after which the engine is given up."""
FIRST_BACKOFF_S = 0.1
"""Delay before the first restart; doubles with every failed start."""
LONGEST_BACKOFF_S = 5.0
"""Largest delay between attempts while the system has no room for a process."""


class EngineSupervisor:
    """An engine whose process is restarted after its death.

    Args:
        options: options of every process.
        stall_timeout_s: seconds without activity after which a process is killed; 0 for never.

    Attributes:
        options: options of every process.
        on_change: called with False when the engine has died, and with True when it is back.
        state: state of the engine.
    """

    def __init__(
        self,
        options: EngineOptions,
        stall_timeout_s: float = 0.0,
    ) -> None:
        self.options = options
        self.on_change: Callable[[bool], Awaitable[None]] = _ignore
        self._stall_timeout_s = stall_timeout_s
        self._process = EngineProcess(options, stall_timeout_s)
        self._model: ModelInfo | None = None
        self.state = EngineState.STARTING

    @property
    def pid(self) -> int | None:
        """Id of the current process."""
        return self._process.pid

    async def begin(self) -> None:
        """Start the first process, which begins to load the model while the caller does other work.

        Raises:
            ConfigurationError: the process cannot be started.
        """
        with _translate_refusal():
            await self._process.begin()

    async def start(self) -> ModelInfo:
        """Start the first process, unless `begin` has, and wait for it; see `EngineProcess.start`.

        Raises:
            ConfigurationError: the model cannot be served.
        """
        with _translate_refusal():
            self._model = await self._process.start()
        self.state = EngineState.RUNNING
        return self._model

    def send(self, message: FrontMessage) -> None:
        """Send a message to the current process without blocking."""
        self._process.send(message)

    def read_turns(self) -> AsyncIterator[Turn]:
        """Yield the turns of the current process.

        Raises:
            EngineLostError: the process ended without `stop`; `restart` may start another.
        """
        return self._process.read_turns()

    async def restart(self) -> None:
        """Start a new process after the death of the last one.

        Raises:
            EngineLostError: no process starts, or the weights have changed.
        """
        self.state = EngineState.RESTARTING
        await self.on_change(False)
        await self._process.stop()
        for attempt in range(MAX_START_FAILURES):
            await asyncio.sleep(FIRST_BACKOFF_S * 2**attempt)
            try:
                model = await self._start_another()
            except ConfigurationError as error:
                logger.critical("the engine process did not start again: %s", error)
                continue
            self._check_same(model)
            self.state = EngineState.RUNNING
            logger.warning("the engine is running again, process %s", self._process.pid)
            await self.on_change(True)
            return
        self.state = EngineState.LOST
        raise EngineLostError(f"it failed to start {MAX_START_FAILURES} times in a row")

    async def _start_another(self) -> ModelInfo:
        """Start a process, and retry while the system has no room for one.

        Raises:
            ConfigurationError: the process could not load the model, or ended before it had.
        """
        delay_s = FIRST_BACKOFF_S
        while True:
            self._process = EngineProcess(self.options, self._stall_timeout_s)
            try:
                return await self._process.start()
            except OSError as error:
                logger.critical("the engine process cannot be started and is retried: %s", error)
                # The process may have been created before something else failed.
                await self._process.stop()
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, LONGEST_BACKOFF_S)

    def _check_same(self, model: ModelInfo) -> None:
        before = self._model
        if before is None:
            return
        changed = sorted(set(_list_adapters(before)) ^ set(_list_adapters(model)))
        if changed:
            self.state = EngineState.LOST
            raise EngineLostError(
                f"the files of the adapter {changed[0][0]!r} have changed since the start: "
                "generations that began with it cannot continue"
            )
        if model.weights_digest != before.weights_digest:
            self.state = EngineState.LOST
            raise EngineLostError(
                "the model's files have changed since the start: generations that began with "
                f"weights {before.weights_digest} cannot continue with {model.weights_digest}"
            )

    async def stop(self) -> None:
        """End the current process."""
        self.state = EngineState.STOPPED
        await self._process.stop()


def _list_adapters(model: ModelInfo) -> list[tuple[str, str]]:
    """Return the name and the weights digest of each adapter."""
    return [(adapter.name, adapter.weights_digest) for adapter in model.adapters]


async def _ignore(_up: bool) -> None:
    """Tell nobody of a change of state."""


@contextmanager
def _translate_refusal() -> Iterator[None]:
    """Translate the system's refusal to start a process into a ConfigurationError."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(f"the engine process cannot be started: {error}") from error
