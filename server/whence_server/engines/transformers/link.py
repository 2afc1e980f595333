"""Client of the engine process, in the front."""

import asyncio
import logging
import math
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

from whence_server.domain.engine import FrontMessage, Turn
from whence_server.domain.errors import ConfigurationError, EngineLostError
from whence_server.domain.model import ModelInfo
from whence_server.engines.transformers.handshake import EngineOptions, LoadFailed
from whence_server.processes import channel
from whence_server.processes.heartbeat import INTERVAL_S, Pulse
from whence_server.processes.watchdog import Watchdog, read_processor_time

logger = logging.getLogger(__name__)

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""Make glibc keep freed memory: otherwise a step's temporaries fault their pages in each time."""
COMMAND = (sys.executable, "-P", "-m", "whence_server.engines.transformers.worker")
"""Command of the engine process; -P: do not import modules from the working directory."""
BRIEF_SPINNING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""Settings of the waits of torch's threads, which the environment overrides: threads spin for some
microseconds, and then sleep.

Long spinning is bad beside another busy process, as in a sidecar, because a thread spins for one
that is not running: on two shared cores, a step with two threads took 2 to 60 times as long. With
no spinning, each of a step's many short waits costs a wake-up: a model of 124M parameters made 32
tokens a second instead of 40.
"""
READ_AHEAD_BYTES = 1 << 18
"""Read buffer limit; asyncio buffers up to twice as much before it stops reading."""


class EngineProcess:
    """One engine process, from its start to its end.

    The engine writes only as fast as `read_turns` is consumed: otherwise the socket fills up and
    decoding waits. The engine exits when this process ends for any reason.

    Args:
        options: options of the process.
        stall_timeout_s: seconds without activity after which the process is killed; 0 for never.
            See `watchdog`.
    """

    def __init__(self, options: EngineOptions, stall_timeout_s: float = 0.0) -> None:
        self._options = options
        self._stall_timeout_s = stall_timeout_s
        self._pulse: Pulse | None = None
        self._watching: asyncio.Task[None] | None = None
        self._process: Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Id of the process; None before the start."""
        return self._process.pid if self._process else None

    async def start(self) -> ModelInfo:
        """Start the process, unless `begin` has, and wait until it has loaded its model.

        Raises:
            ConfigurationError: the process could not load the model, or ended before it had.
            OSError: the system has no room for a process or its file descriptors at present.
        """
        if self._process is None:
            await self.begin()
        answer = await self._receive()
        if answer is None:
            raise ConfigurationError(
                f"the engine process ended while loading the model ({await self._describe_end()}); "
                "its own messages are on standard error"
            )
        if isinstance(answer, LoadFailed):
            await self._describe_end()
            raise ConfigurationError(answer.message)
        return answer.model

    async def begin(self) -> None:
        """Start the process, which begins to load its model.

        Raises:
            OSError: the system has no room for a process or its file descriptors at present.
        """
        await self._spawn()
        if self._writer is None:
            raise EngineLostError("it has not been started")
        self._writer.write(channel.encode(self._options))

    async def _spawn(self) -> None:
        with ExitStack() as theirs_to_close, ExitStack() as ours_to_close:
            ours, theirs = socket.socketpair()
            theirs_to_close.callback(theirs.close)
            ours_to_close.callback(ours.close)
            pulse, heart = os.pipe()
            theirs_to_close.callback(os.close, heart)
            self._pulse = Pulse(pulse)
            ours_to_close.callback(self._pulse.close)
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(theirs.fileno()),
                str(heart),
                pass_fds=(theirs.fileno(), heart),
                stdin=DEVNULL,
                env=BRIEF_SPINNING | self._name_code_cache() | os.environ | KEEP_MEMORY,
                # The front alone handles a Ctrl-C in the terminal, and lets the engine finish.
                start_new_session=True,
            )
            if self._stall_timeout_s:
                self._watching = asyncio.create_task(self._watch(), name="engine-watchdog")
            self._reader, self._writer = await asyncio.open_connection(
                sock=ours, limit=READ_AHEAD_BYTES
            )
            ours_to_close.pop_all()

    def _name_code_cache(self) -> dict[str, str]:
        """Return numba's variable for the directory of compiled code; empty for none."""
        directory = self._options.code_cache
        return {"NUMBA_CACHE_DIR": directory} if directory else {}

    async def _watch(self) -> None:
        """Kill the process if it hangs."""
        process, pulse = self._process, self._pulse
        if process is None or pulse is None:
            raise EngineLostError("it has not been started")
        interval_s = min(INTERVAL_S, self._stall_timeout_s / 4)
        watchdog = Watchdog(math.ceil(self._stall_timeout_s / interval_s))
        while process.returncode is None:
            await asyncio.sleep(interval_s)
            why = watchdog.look(pulse.read_newest(), read_processor_time(process.pid))
            if why and process.returncode is None:
                logger.critical("the engine process %d hangs and is killed: %s", process.pid, why)
                process.kill()
                return

    def send(self, message: FrontMessage) -> None:
        """Send a message without blocking; messages to an engine that has ended are dropped."""
        if self._writer is None:
            raise EngineLostError("it has not been started")
        if not self._writer.is_closing():
            self._writer.write(channel.encode(message))

    async def read_turns(self) -> AsyncIterator[Turn]:
        """Yield the engine's turns until `stop`.

        Raises:
            EngineLostError: the process ended without `stop`.
        """
        while (turn := await self._receive()) is not None:
            yield turn
        if not self._stopping:
            raise EngineLostError(await self._describe_end())

    async def wait(self) -> int:
        """Wait for the process's end; return its exit status, negative for a signal."""
        if self._process is None:
            raise EngineLostError("it has not been started")
        return await self._process.wait()

    async def stop(self, grace_s: float = 5.0) -> None:
        """End the process by closing its socket; kill it after the grace."""
        self._stopping = True
        if self._writer is not None:
            self._writer.close()
        if self._process is None:
            return
        try:
            await asyncio.wait_for(self._process.wait(), grace_s)
        except TimeoutError:
            logger.warning("the engine process has not ended within %g s and is killed", grace_s)
            self._process.kill()
            await self._process.wait()
        finally:
            if self._watching is not None:
                self._watching.cancel()
                await asyncio.gather(self._watching, return_exceptions=True)
            if self._pulse is not None:
                self._pulse.close()

    async def _receive(self) -> Any:
        """Return the next message; None if the engine has closed its socket."""
        if self._reader is None:
            raise EngineLostError("it has not been started")
        try:
            header = await self._reader.readexactly(channel.HEADER.size)
            (length,) = channel.HEADER.unpack(header)
            return channel.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _describe_end(self) -> str:
        status = await self.wait()
        return f"signal {-status}" if status < 0 else f"exit status {status}"
