"""Client of one text process, in the front."""

import asyncio
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from contextlib import suppress
from typing import Any

from whence_server.domain.errors import (
    FieldViolation,
    InvalidRequestError,
    TextProcessError,
    WhenceError,
)
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.prepare import SHORT_BYTES, Prepared, name_input_field
from whence_server.generation.text_worker import (
    CONSTRAINT_OVERTIME,
    READY,
    TEMPLATE_OVERTIME,
    TEXT_OVERTIME,
    Setup,
    compute_text_seconds,
)
from whence_server.processes import channel
from whence_server.processes.watchdog import Watchdog, read_processor_time

_log = logging.getLogger(__name__)

# -P: do not import modules from the working directory.
COMMAND = (sys.executable, "-P", "-m", "whence_server.generation.text_worker")
_WALL_FACTOR = 5.0
"""Bound of a request's wall time, as a multiple of its CPU time limit, on a busy machine."""
_LOOK_S = 1.0
_PATIENCE = 10
"""Successive looks without CPU time after which a process is killed: it was stopped, and would
delay its requests until their time limit."""
_ENDING_S = 5.0
"""Seconds that a process may take to exit after it has closed its socket."""


class ProcessEndedError(Exception):
    """The process ended, and not because of a limit: a retry in another process may succeed."""


class TextProcess:
    """One text process, from its start to its end; it prepares one request at a time."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._process: Process | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int | None:
        """Id of the process; None before the start."""
        return self._process.pid if self._process else None

    @property
    def has_ended(self) -> bool:
        """True if the process takes no requests: before its start, and after its end."""
        if self._process is None or self._reader is None:
            return True
        return self._process.returncode is not None or self._reader.at_eof()

    async def start(self) -> None:
        """Start the process, and wait until it has loaded the tokenizer.

        Raises:
            TextProcessError: the process does not start.
        """
        ours, theirs = socket.socketpair()
        try:
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                stdin=DEVNULL,
                stdout=DEVNULL,
                env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
                # The front alone handles a Ctrl-C in the terminal.
                start_new_session=True,
            )
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except OSError as error:
            ours.close()
            raise TextProcessError(f"the text process cannot be started: {error}") from error
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._writer.write(channel.encode(self._setup))
        if await self._await_answer() != READY:
            status = await self._wait_for_exit()
            raise TextProcessError(
                f"the text process ended with status {status} before it was ready; its own "
                "messages are on standard error"
            )

    async def prepare(self, request: GenerationRequest) -> Prepared:
        """Prepare a request; see `prepare.prepare_request`.

        Raises:
            InvalidRequestError: the request is invalid, or exceeded a limit.
            ProcessEndedError: the process ended for another reason.
        """
        assert self._writer is not None  # noqa: S101 - it was started
        if request.size_bytes <= SHORT_BYTES:
            self._writer.write(channel.encode(request))
        else:
            # Thousands of messages take long to pickle.
            self._writer.write(await asyncio.to_thread(channel.encode, request))
        limit_s = compute_text_seconds(request, self._setup.limits) * _WALL_FACTOR
        try:
            async with asyncio.timeout(limit_s):
                answer = await self._await_answer()
        except TimeoutError:
            await self.stop()
            raise self._explain_overtime(request, TEXT_OVERTIME) from None
        if answer is None:
            raise self._explain_end(request, await self._wait_for_exit())
        if isinstance(answer, WhenceError):
            raise answer
        prepared: Prepared = answer
        return prepared

    def kill(self) -> None:
        """Kill the process; a running `prepare` then raises."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> int:
        """Kill the process; return its exit status, negative for a signal."""
        if self._writer is not None:
            self._writer.close()
        if self._process is None:
            return 0
        self.kill()
        return await self._process.wait()

    async def _wait_for_exit(self) -> int:
        """Wait for a process that has closed its socket; return its exit status, as `stop` does.

        The process is killed only after a delay: a signal would hide the reason for its end.
        """
        if self._process is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _ENDING_S)
        return await self.stop()

    async def _await_answer(self) -> Any:
        """Return the next message; kill the process if it does not run meanwhile."""
        watching = asyncio.create_task(self._watch(), name="text-process-watchdog")
        try:
            return await self._receive()
        finally:
            watching.cancel()

    async def _watch(self) -> None:
        assert self._process is not None  # noqa: S101 - it was started
        watchdog = Watchdog(_PATIENCE)
        while (spent := read_processor_time(self._process.pid)) is not None:
            if watchdog.look(None, spent):
                _log.critical("the text process %d does not run and is killed", self._process.pid)
                self.kill()
                return
            await asyncio.sleep(_LOOK_S)

    async def _receive(self) -> Any:
        """Return the next message; None if the process has closed its socket."""
        assert self._reader is not None  # noqa: S101 - it was started
        try:
            header = await self._reader.readexactly(channel.HEADER.size)
            (length,) = channel.HEADER.unpack(header)
            return channel.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def _explain_end(self, request: GenerationRequest, status: int) -> Exception:
        if -status in {TEMPLATE_OVERTIME, TEXT_OVERTIME, CONSTRAINT_OVERTIME}:
            return self._explain_overtime(request, -status)
        if -status == signal.SIGABRT:
            # Compiled code aborts if it gets no memory.
            constraint = request.decoding.constraint
            whose = "needs" if constraint is None else "or its constraint needs"
            return InvalidRequestError(
                FieldViolation(
                    name_input_field(request), f"{whose} more memory than the text process may have"
                )
            )
        ended = f"signal {-status}" if status < 0 else f"exit status {status}"
        return ProcessEndedError(ended)

    def _explain_overtime(self, request: GenerationRequest, passed: int) -> InvalidRequestError:
        limits = self._setup.limits
        constraint = request.decoding.constraint
        if passed == CONSTRAINT_OVERTIME and constraint is not None:
            return InvalidRequestError(
                FieldViolation(
                    constraint.field,
                    f"takes too long to compile: stopped after {limits.max_constraint_s:g} s",
                )
            )
        if passed == TEMPLATE_OVERTIME:
            return InvalidRequestError(
                FieldViolation(
                    "chat",
                    "the model's chat template does not end on this conversation: it was stopped "
                    f"after {limits.max_template_s:g} s of CPU time",
                )
            )
        seconds = compute_text_seconds(request, limits)
        return InvalidRequestError(
            FieldViolation(
                name_input_field(request),
                f"takes too long to tokenize: stopped after {seconds:g} s of CPU time",
            )
        )
