"""Process and end of a client."""

import ctypes
import os
import threading
from typing import Any, Protocol
from weakref import WeakSet

from whence.errors import CallCancelledError, FailedPreconditionError


class Reader(Protocol):
    """Reader of a stream, which may be waiting for the server."""

    @property
    def call(self) -> Any:
        """The call of gRPC that is being read."""

    def interrupt(self) -> None:
        """End the wait; the reader then calls `Lifetime.check`."""


class Lifetime:
    """Process in which a client can be used, until it is closed.

    gRPC's threads do not exist in a forked child: a call on the parent's channel never ends there.
    """

    def __init__(self) -> None:
        self._process_id = os.getpid()
        self._lock = threading.Lock()
        self._readers: WeakSet[Reader] = WeakSet()
        self._is_closed = False
        _LIFETIMES.add(self)

    @property
    def is_in_child(self) -> bool:
        """True in a child that was forked from the client's process."""
        return os.getpid() != self._process_id

    @property
    def is_closed(self) -> bool:
        """True once the client is closed."""
        return self._is_closed

    def check(self) -> None:
        """Check that the client can still be used, in this process.

        Raises:
            FailedPreconditionError: this process was forked from the client's.
            CallCancelledError: the client is closed.
        """
        self.check_process()
        if self._is_closed:
            raise CallCancelledError("the client is closed", reason="CLIENT_CLOSED")

    def check_process(self) -> None:
        """Check that this process is the client's.

        Raises:
            FailedPreconditionError: this process was forked from the client's.
        """
        if self.is_in_child:
            raise FailedPreconditionError(
                f"the client belongs to process {self._process_id}, and process {os.getpid()} is a "
                "fork of it: start processes with multiprocessing's `spawn`, and make a client in "
                "each (in a fork, gRPC may crash even with a new client)",
                reason="CLIENT_OF_ANOTHER_PROCESS",
            )

    def add(self, reader: Reader) -> None:
        """Add a reader that the client's end interrupts, for as long as it exists."""
        with self._lock:
            self._readers.add(reader)

    def end(self) -> bool:
        """End the use of the client; return False if there is nothing to close here."""
        if self.is_in_child:
            return False
        with self._lock:
            is_first, self._is_closed = not self._is_closed, True
            readers = list(self._readers)
        for reader in readers:
            reader.interrupt()
        return is_first

    def keep_calls(self) -> None:
        """Keep the calls that are being read for ever; for a forked child.

        A call that is freed takes a lock, which a thread of the parent may have held at the fork.
        """
        for reader in list(self._readers):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(reader.call))


_LIFETIMES: WeakSet[Lifetime] = WeakSet()


def _keep_calls() -> None:
    for lifetime in list(_LIFETIMES):
        lifetime.keep_calls()


os.register_at_fork(after_in_child=_keep_calls)
