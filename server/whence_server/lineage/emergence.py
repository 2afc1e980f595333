"""Tracing of a text's emergence in a process of its own, as it needs torch and the server has none.

The process reads one JSON object from its standard input, which stays open as long as the answer is
wanted, and writes delimited TraceEmergenceResponse messages to its standard output. Exit status 2
with a JSON object on the last line of standard error means that the request was refused; any other
status but 0 is a bug.
"""

import asyncio
import json
import logging
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol

from whence_server.domain.errors import (
    EmergenceBusyError,
    EmergenceRefusedError,
    FieldViolation,
    InvalidRequestError,
    LineageError,
    WhenceError,
)
from whence_server.lineage.framing import iterate_frames

_log = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "whence_server.training.emergence.process")
REFUSED = 2
RETRY_AFTER_S = 5.0
_GRACE_S = 2.0
_CHUNK_BYTES = 1 << 16
_KEPT_STDERR_BYTES = 1 << 14


class EmergenceRequest(NamedTuple):
    """Text to trace, and the record of the run to trace it in."""

    record: Path
    prompt: str
    continuation: str
    omit_groups: bool


class AnalysisPlace(Protocol):
    """Place of the one analysis process."""

    @property
    def is_busy(self) -> bool:
        """True while another analysis has it."""

    def keep_out(self) -> AbstractAsyncContextManager[None]:
        """Hold the place."""


class EmergenceTracer:
    """Runner of tracing processes, at most one at a time.

    Args:
        command: command line of the process; tests replace it.
        place: place of the one analysis process, which a verification may have; None if nothing
            else needs it.
    """

    def __init__(
        self, command: Sequence[str] = COMMAND, place: AnalysisPlace | None = None
    ) -> None:
        self._command = tuple(command)
        self._place = place
        self._running = asyncio.Lock()

    async def close(self) -> None:
        """Wait until no process runs; cancel every running `trace` first."""
        async with self._running:
            pass

    async def trace(self, request: EmergenceRequest) -> AsyncGenerator[bytes, None]:
        """Yield serialised TraceEmergenceResponse messages as they are computed.

        Closing the generator ends the process.

        Raises:
            EmergenceBusyError: another text is being traced, or a generation verified.
            EmergenceRefusedError: this run cannot be traced.
            InvalidRequestError: this text cannot be traced.
            LineageError: the process failed.
        """
        if self._running.locked() or (self._place is not None and self._place.is_busy):
            raise EmergenceBusyError(RETRY_AFTER_S)
        place = nullcontext() if self._place is None else self._place.keep_out()
        async with self._running, place:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=PIPE,
                # A Ctrl-C in the terminal is for the front, which ends the process itself.
                start_new_session=True,
            )
            errors = asyncio.create_task(_read_end_of_stderr(process))
            try:
                _send(process, request)
                async for message in _read_messages(process):
                    yield message
                status = await process.wait()
                if status != 0:
                    raise _make_error(status, await errors)
            finally:
                try:
                    await _end(process)
                finally:
                    errors.cancel()
                    await asyncio.gather(errors, return_exceptions=True)


def _send(process: Process, request: EmergenceRequest) -> None:
    assert process.stdin is not None  # noqa: S101 - a pipe was asked for
    asked = {**request._asdict(), "record": str(request.record.resolve())}
    process.stdin.write(json.dumps(asked).encode() + b"\n")


async def _read_messages(process: Process) -> AsyncGenerator[bytes, None]:
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    buffer = b""
    while chunk := await process.stdout.read(_CHUNK_BYTES):
        buffer += chunk
        end = 0
        for frame in iterate_frames(buffer):
            yield frame.message
            end = frame.end
        buffer = buffer[end:]
    if buffer:
        raise LineageError("tracing a text's emergence ended in the middle of a message")


async def _read_end_of_stderr(process: Process) -> bytes:
    """Read all of standard error, so that the process never blocks, and return its last bytes."""
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    kept = b""
    while chunk := await process.stderr.read(_CHUNK_BYTES):
        kept = (kept + chunk)[-_KEPT_STDERR_BYTES:]
    return kept


def _make_error(status: int, stderr: bytes) -> WhenceError:
    text = stderr.decode("utf-8", "replace").strip()
    if status == REFUSED:
        try:
            refusal = json.loads(text.splitlines()[-1])
            message = str(refusal["message"])
            if refusal.get("field"):
                return InvalidRequestError(FieldViolation(str(refusal["field"]), message))
            return EmergenceRefusedError(str(refusal["reason"]), message)
        except (ValueError, LookupError, TypeError, AttributeError):
            pass
    return LineageError(f"tracing a text's emergence ended with status {status}: {text}")


async def _end(process: Process) -> None:
    """Close the process's input, which ends it; kill the process if it does not end in time.

    The process has ended when this returns or is cancelled, also if both the client and the server
    cancel the call.
    """
    if process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), _GRACE_S)
    except TimeoutError:
        _log.warning("the process that traces a text's emergence does not end; it is killed")
    finally:
        if process.returncode is None:
            process.kill()
            await _wait_for_end(process)


async def _wait_for_end(process: Process) -> None:
    """Wait for the end of a killed process; a cancellation takes effect after the end."""
    ending = asyncio.ensure_future(process.wait())
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            await asyncio.wait((ending,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
