"""Heartbeat of the engine process: a thread that reports its progress once a second.

The heartbeat has its own thread, because a forward pass may take minutes. torch releases the GIL
while it computes, so that the thread can run. The front's `watchdog` reads the beats.
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
    """Activity of the engine's main thread."""

    LOADING = 0
    IDLE = 1
    """Waits for a message."""
    WORKING = 2
    SENDING = 3
    """Sends a turn to the front, which may read it slowly."""


class Beat(NamedTuple):
    """One beat of the heartbeat."""

    number: int
    """Number of beats before this one."""
    phase: Phase
    num_turns: int
    """Number of turns that the engine's loop has begun."""
    busy_ns: int
    """CPU time of all threads except the heartbeat's own."""


class Heart:
    """Writer of the heartbeat, into a pipe, until the process ends.

    Args:
        descriptor: write end of the pipe. It is made non-blocking, and beats that do not fit are
            dropped, so that a front that does not read cannot block the engine.

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
        """Start the heartbeat thread."""
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
                return  # the front has ended, and this process is about to
            number += 1
            time.sleep(INTERVAL_S)


class Pulse:
    """Reader of the heartbeat, in the front.

    Args:
        descriptor: read end of the pipe; `close` closes it.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._rest = b""
        self._newest: Beat | None = None

    def read_newest(self) -> Beat | None:
        """Return the newest beat received; None before the first."""
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
        """Close the pipe's read end; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
