"""Inbox of the engine's loop, in which a constraint is compiled before its generation is admitted.

Compilation takes milliseconds, and a large grammar's a second. It runs in a thread of its own and
without the interpreter's lock, so that the running sequences go on.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from whence_server.constraints.errors import ConstraintError
from whence_server.domain.engine import Admit, FrontMessage, StopGeneration

if TYPE_CHECKING:
    from whence_server.constraints.compiler import Matcher


class AdmitConstrained(NamedTuple):
    """Request to run a generation whose constraint is compiled."""

    admit: Admit
    compiled: "Matcher | ConstraintError"
    """State of an empty text, or the reason why there is none."""


LoopMessage = FrontMessage | AdmitConstrained
"""A message to the engine's loop."""


class Inbox:
    """Queue of messages from the receiving thread to the engine's loop.

    Admissions with a constraint enter the queue once it is compiled; all others at once.

    Attributes:
        compile_constraint: returns the admission to enter; called in a thread of the inbox. To be
            set before the first admission.
    """

    compile_constraint: Callable[[Admit], AdmitConstrained]

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[LoopMessage] = queue.SimpleQueue()
        self._compiling: set[str] = set()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="constraints")

    def put(self, message: FrontMessage) -> None:
        """Take a message from the front."""
        if isinstance(message, Admit) and message.decoding.constraint is not None:
            with self._lock:
                self._compiling.add(message.generation_id)
            self._thread.submit(self._admit, message)
            return
        if isinstance(message, StopGeneration):
            with self._lock:
                # The loop does not know a generation whose constraint is still compiled.
                if message.generation_id in self._compiling:
                    self._compiling.discard(message.generation_id)
                    return
        self._queue.put(message)

    def get(self) -> LoopMessage:
        """Return the next message, and wait for it."""
        return self._queue.get()

    def is_empty(self) -> bool:
        """Return whether no message is ready."""
        return self._queue.empty()

    def _admit(self, admit: Admit) -> None:
        compiled = self.compile_constraint(admit)
        with self._lock:
            if admit.generation_id in self._compiling:
                self._compiling.discard(admit.generation_id)
                self._queue.put(compiled)
