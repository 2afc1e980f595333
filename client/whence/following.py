"""Items of a stream that resumes, for the synchronous client."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grpc

from whence.errors import WhenceError
from whence.lifetime import Lifetime
from whence.resume import Resumable
from whence.status import convert_error

Item = TypeVar("Item")

MOST_AHEAD = 8
"""Maximum number of responses that are read before their items are taken."""


class Following(Generic[Item]):
    """Items of a resumable stream, over as many calls as needed.

    An iterator and a context manager; `close` may be called from another thread, and ends
    the iteration.
    """

    def __init__(
        self, stream: Resumable[Item], call: Callable[[], Any], lifetime: Lifetime
    ) -> None:
        self._lifetime = lifetime
        self._reader = _Reader(stream, call, lifetime)
        self._ahead: _ReadAhead[Item] | None = None

    def __enter__(self) -> "Following[Item]":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        # Without a reader the thread would wait for ever, and the server would see no end.
        if getattr(self, "_ahead", None) is not None:
            self.close()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        item = self.read()
        if item is None:
            raise StopIteration
        return item

    def read(self, timeout_s: float | None = None) -> Item | None:
        """Return the next item; None at the end.

        Args:
            timeout_s: maximum wait in seconds; None for no maximum.

        Raises:
            TimeoutError: no item came in time. Nothing is lost: the next read continues.
            WhenceError: the stream cannot continue.
        """
        if timeout_s is not None and self._ahead is None:
            self._ahead = _ReadAhead(self._reader)
        if self._ahead is None:
            return self._reader.read()
        self._lifetime.check_process()
        return self._ahead.read(timeout_s)

    def close(self) -> None:
        """Stop reading, and cancel the call."""
        # A forked child has no reading thread, and locks of gRPC may be held there for ever.
        if not self._lifetime.is_in_child:
            self._reader.close()
            if self._ahead is not None:
                self._ahead.close()


class _Reader(Generic[Item]):
    """Reading of a resumable stream, by one thread at a time."""

    def __init__(
        self, stream: Resumable[Item], call: Callable[[], Any], lifetime: Lifetime
    ) -> None:
        self._stream = stream
        self._start = call
        self._lifetime = lifetime
        self._wake = threading.Event()
        self._is_closed = False
        self.call = call()
        lifetime.add(self)

    def read(self) -> Item | None:
        """Return the next item; None at the end."""
        while not self._is_closed:
            self._lifetime.check()
            error: WhenceError | None = None
            try:
                for response in self.call:
                    item = self._stream.receive(response)
                    if item is not None:
                        return item
            except grpc.RpcError as rpc_error:
                error = convert_error(rpc_error)
            except Exception:
                # The stream cannot continue: cancel the call, so that the server sees its end.
                self.call.cancel()
                raise
            # A complete stream is read to its end, so that the call ends with OK.
            if self._has_ended():
                break
            self._lifetime.check()
            delay_s = self._stream.handle_break(error)
            if self._has_ended():
                break
            self._wake.wait(delay_s)
            if not self._is_closed:
                self.call = self._start()
            if self._has_ended():  # closed by another thread, which cancelled the call before it
                self.call.cancel()
        return None

    def _has_ended(self) -> bool:
        return self._stream.complete or self._is_closed

    def interrupt(self) -> None:
        """End the wait before a retry."""
        self._wake.set()

    def close(self) -> None:
        """End the read, and cancel the call."""
        self._is_closed = True
        self._wake.set()
        self.call.cancel()


class _ReadAhead(Generic[Item]):
    """Thread that reads items before they are taken, so that a wait for one can be given up."""

    def __init__(self, reader: _Reader[Item]) -> None:
        self._reader = reader
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._has_ended = False
        self._error: Exception | None = None
        threading.Thread(target=self._fill, name="whence-reader", daemon=True).start()

    def read(self, timeout_s: float | None) -> Item | None:
        """Return the next item; None at the end.

        Raises:
            TimeoutError: no item came in time.
        """
        longest_s = None if timeout_s is None else min(max(0.0, timeout_s), threading.TIMEOUT_MAX)
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._has_ended, longest_s):
                raise TimeoutError("nothing came in time; the stream continues")
            if self._items:
                self._changed.notify_all()
                return self._items.popleft()
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """Drop the items, and end the reads."""
        with self._changed:
            self._items.clear()
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        with self._changed:
            if not self._has_ended:
                self._has_ended, self._error = True, error
            self._changed.notify_all()

    def _fill(self) -> None:
        try:
            while not self._has_ended and (item := self._reader.read()) is not None:
                self._put(item)
        except Exception as error:  # noqa: BLE001 - raised again in the reader
            self._end(error)
        else:
            self._end(None)

    def _put(self, item: Item) -> None:
        with self._changed:
            if not self._has_ended:
                self._items.append(item)
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._items) < MOST_AHEAD or self._has_ended)
