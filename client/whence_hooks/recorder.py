"""Recorder: takes what a hook measured, makes messages of it in a thread, and has them sent."""

import atexit
import importlib.metadata
import itertools
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TypeAlias

from whence.security import Server
from whence.v1.record_pb2 import RecorderHello, RecorderLoss, RecordGenerationsRequest
from whence_hooks.connection import Connection, SentModel
from whence_hooks.outbox import Outbox

_log = logging.getLogger("whence_hooks")

LIBRARY = f"whence-hooks/{importlib.metadata.version('whence')}"

MAX_MESSAGE_BYTES = 3 << 20
"""Maximum size of a message: a server takes 4 MiB, unless its settings say otherwise."""

Messages: TypeAlias = Iterable[RecordGenerationsRequest]
Work: TypeAlias = tuple[Callable[[], Messages], int]
"""Maker of messages, and the number of bytes that are reserved for them."""


class Recorder:
    """Sender of one service's batches; it never holds up a thread that submits.

    Args:
        server: the server to connect to.
        max_bytes: bound on what is buffered.

    Attributes:
        num_lost_generations: number of generations that are not on record.
        num_lost_steps: number of lost steps of the others, which are on record as failed.
    """

    def __init__(self, server: Server, max_bytes: int) -> None:
        self.num_lost_generations = 0
        self.num_lost_steps = 0
        self._outbox = Outbox(max_bytes)
        self._models: dict[int, SentModel] = {}
        self._batch_numbers = itertools.count(1)
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._hurried = threading.Event()
        self._lock = threading.Lock()
        self._open: dict[int, Callable[[], None]] = {}
        self._is_closing = False
        self._process_id = os.getpid()
        self._untold_loss = 0
        self._told_obstacles: set[str] = set()
        self._worker = threading.Thread(target=self._run, name="whence-encode", daemon=True)
        self._worker.start()
        hello = RecorderHello(recorder_id=str(uuid.uuid4()), library=LIBRARY)
        self._connection = Connection(server, hello, self._outbox, self._models)
        atexit.register(self._flush_at_exit)

    @property
    def is_usable(self) -> bool:
        """False in a process that was forked from the recorder's: it has none of its threads."""
        return os.getpid() == self._process_id

    def add_model(self, model: SentModel) -> int:
        """Add a model; return its number."""
        with self._lock:
            number = len(self._models) + 1
            model.description.model_number = number
            self._models[number] = model
            return number

    def begin(
        self,
        make_messages: Callable[[int], Messages],
        num_generations: int,
        num_bytes: int,
        submit_rest: Callable[[], None] = lambda: None,
    ) -> int:
        """Submit the start of a batch; return its number, 0 if there is no room for it.

        Args:
            make_messages: makes the messages from the batch's number.
            num_generations: number of the batch's generations.
            num_bytes: estimated size of the messages.
            submit_rest: submits what the batch keeps back; `flush` calls it, in any thread.
        """
        if not self.is_usable:
            obstacle = "the recorder belongs to the process that this one was forked from"
        elif self._outbox.refusal:
            obstacle = self._outbox.refusal
        elif num_bytes > MAX_MESSAGE_BYTES:
            obstacle = f"their prompts have more than {MAX_MESSAGE_BYTES} bytes together"
        elif not self._outbox.reserve(num_bytes):
            obstacle = "the buffer for the whence server is full"
        else:
            obstacle = ""
        if obstacle:
            self._note_lost(num_generations, obstacle)
            return 0
        number = next(self._batch_numbers)
        with self._lock:
            self._open[number] = submit_rest
        self._work.put((lambda: make_messages(number), num_bytes))
        return number

    def submit(self, make_messages: Callable[[], Messages], num_bytes: int) -> bool:
        """Submit a part of a batch; return False if there is no room for it."""
        if not self._outbox.reserve(num_bytes):
            return False
        self._work.put((make_messages, num_bytes))
        return True

    def end(self, number: int, make_messages: Callable[[], Messages], num_lost: int) -> None:
        """Submit the end of a batch, for which there is always room."""
        if num_lost:
            with self._lock:
                self.num_lost_steps += num_lost
            # A refusal was told already.
            level = logging.DEBUG if self._outbox.refusal else logging.WARNING
            _log.log(
                level,
                "%d steps of a batch were lost, as the buffer for the whence server is full; its "
                "generations are on record as failed",
                num_lost,
            )
        self._outbox.reserve(0, is_needed=True)
        self._work.put((make_messages, 0))
        with self._lock:
            del self._open[number]
            is_last = self._is_closing and not self._open
        if is_last:
            threading.Thread(target=self._stop, args=(_LATE_FLUSH_S,), daemon=True).start()

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything submitted so far is on record; return False at the timeout."""
        if not self.is_usable:
            return False
        until_s = time.monotonic() + timeout_s
        with self._lock:
            open_batches = list(self._open.values())
        for submit_rest in open_batches:
            submit_rest()
        encoded = threading.Event()

        def note_encoded() -> Messages:
            encoded.set()
            return ()

        self._work.put((note_encoded, 0))
        self._hurried.set()
        if not encoded.wait(timeout_s):
            return False
        outbox = self._outbox
        with outbox.changed:
            last = outbox.last_number
            return outbox.changed.wait_for(
                lambda: outbox.acknowledged_number >= last, max(until_s - time.monotonic(), 0.0)
            )

    def close(self, timeout_s: float) -> None:
        """Flush, and end the threads; with batches that still run, their end ends the threads."""
        with self._lock:
            self._is_closing = True
            is_idle = not self._open
        if not self.is_usable:
            return
        if is_idle:
            self._stop(timeout_s)
        else:
            self.flush(timeout_s)

    def _stop(self, timeout_s: float) -> None:
        if not self.flush(timeout_s):
            _log.warning(
                "the record of some generations has not reached the whence server within %g s, "
                "and is lost there",
                timeout_s,
            )
        atexit.unregister(self._flush_at_exit)
        self._work.put(None)
        self._hurried.set()
        self._connection.close(_JOIN_S)
        self._worker.join(_JOIN_S)

    def _flush_at_exit(self) -> None:
        self._stop(_LATE_FLUSH_S)

    def _note_lost(self, num_generations: int, obstacle: str) -> None:
        with self._lock:
            if obstacle not in self._told_obstacles and obstacle != self._outbox.refusal:
                self._told_obstacles.add(obstacle)
                _log.warning("generations are not put on record, as %s", obstacle)
            self.num_lost_generations += num_generations
            self._untold_loss += num_generations

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            # The thread wakes up a few times a second, and not at each step: a forward pass waits
            # for each of its threads, so a core that is taken from one of them stops all.
            self._hurried.wait(_PACE_S)
            self._hurried.clear()
            self._make(work)
            while not self._work.empty():
                if (work := self._work.get()) is None:
                    return
                self._make(work)

    def _make(self, work: Work) -> None:
        make_messages, num_bytes = work
        try:
            for message in make_messages():
                needs = message.begun.model_number if message.HasField("begun") else 0
                self._outbox.append(message, needs)
            self._tell_loss()
        except Exception:  # noqa: BLE001 - see below
            # The service goes on; the batch misses a step, which the server notices.
            _log.exception("a message for the whence server cannot be made")
        finally:
            self._outbox.release(num_bytes)

    def _tell_loss(self) -> None:
        with self._lock:
            lost, self._untold_loss = self._untold_loss, 0
        if lost:
            loss = RecorderLoss(num_generations=lost)
            self._outbox.append(RecordGenerationsRequest(loss=loss))


_PACE_S = 0.05
"""Time for which work is collected before messages are made of it."""
_LATE_FLUSH_S = 5.0
_JOIN_S = 2.0
