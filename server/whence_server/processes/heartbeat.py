"""The engine process's heartbeat: a thread of it says, once a second, how far it has come.

A thread of its own, because a forward pass may take minutes. torch lets go of the interpreter's
lock while it computes, so that the thread gets its turn. The front's `watchdog` judges the beats.
"""

import os
import struct
import threading
import time
from enum import IntEnum
from typing import NamedTuple

INTERVAL_S = 1.0
_FRAME = struct.Struct("!QBQQ")


class Phase(IntEnum):
    """What the engine's main thread is doing."""

    LOADING = 0
    IDLE = 1
    """It waits for a message."""
    WORKING = 2
    SENDING = 3
    """It hands a turn to the front, which may be slow to take it."""


class Beat(NamedTuple):
    """What one beat says."""

    number: int
    """Beats before it."""
    phase: Phase
    num_turns: int
    """Turns that the loop has begun."""
    busy_ns: int
    """Processor time of all threads but the heartbeat's own."""


class Heart:
    """Beats into a pipe until the process ends.

    Args:
        descriptor: the pipe's end to write to; it is made non-blocking, so that a front that
            does not read stops nothing. What finds no room is dropped.

    Attributes:
        phase: set by the main thread.
        num_turns: counted by the main thread.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self.phase = Phase.LOADING
        self.num_turns = 0

    def start(self) -> None:
        """Start to beat."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def _run(self) -> None:
        number = 0
        while True:
            busy_ns = time.process_time_ns() - time.thread_time_ns()
            frame = _FRAME.pack(number, self.phase, self.num_turns, max(busy_ns, 0))
            try:
                os.write(self._descriptor, frame)
            except BlockingIOError:
                pass
            except OSError:
                return  # the front is gone, and so is this process in a moment
            number += 1
            time.sleep(INTERVAL_S)


class Pulse:
    """The front's end of the pipe.

    Args:
        descriptor: the pipe's end to read from, which `close` closes.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""
        self._newest: Beat | None = None

    def read_newest(self) -> Beat | None:
        """Return the newest beat that has come; None before the first."""
        while True:
            try:
                part = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                break
            if not part:
                break
            self._rest += part
        num_whole = len(self._rest) // _FRAME.size
        if num_whole:
            last = (num_whole - 1) * _FRAME.size
            number, phase, num_turns, busy_ns = _FRAME.unpack_from(self._rest, last)
            self._newest = Beat(number, Phase(phase), num_turns, busy_ns)
            self._rest = self._rest[num_whole * _FRAME.size :]
        return self._newest

    def close(self) -> None:
        """Close the pipe's end; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
