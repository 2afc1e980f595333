"""Items of a stream that resumes, for the asynchronous client."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc

from whence.errors import CallCancelledError, WhenceError
from whence.following import MOST_AHEAD
from whence.lifetime import Lifetime
from whence.resume import Resumable
from whence.status import convert_error

Item = TypeVar("Item")


class AsyncFollowing(Generic[Item]):
    """Items of a resumable stream, over as many calls as needed.

    An asynchronous iterator and context manager; `close` may be called from another task,
    and ends the iteration. A cancelled read loses nothing: the next one continues.
    """

    def __init__(
        self, stream: Resumable[Item], call: Callable[[], Any], lifetime: Lifetime
    ) -> None:
        self._lifetime = lifetime
        self._reader = _Reader(stream, call, lifetime)
        self._buffer: _Buffer[Item] = _Buffer()
        self._filling: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "AsyncFollowing[Item]":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # Without a reader the task would wait for ever, and the server would see no end.
        filling = getattr(self, "_filling", None)
        if filling is not None and not filling.done() and not self._lifetime.is_in_child:
            with suppress(RuntimeError):  # its event loop is closed
                filling.get_loop().call_soon_threadsafe(filling.cancel)

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        self._lifetime.check_process()
        # gRPC cancels the whole call when a read is cancelled: a task of its own reads.
        if self._filling is None:
            self._filling = asyncio.create_task(_fill(self._reader, self._buffer))
        item = await self._buffer.take()
        if item is None:
            raise StopAsyncIteration
        return item

    def close(self) -> None:
        """Stop reading, and cancel the call."""
        if not self._lifetime.is_in_child:
            self._buffer.close()
            self._reader.close()

    async def aclose(self) -> None:
        """Stop reading, cancel the call, and wait for the end of the reading task."""
        self.close()
        if self._filling is not None and not self._lifetime.is_in_child:
            await asyncio.wait([self._filling])


class _Reader(Generic[Item]):
    """Reading of a resumable stream, by one task at a time."""

    def __init__(
        self, stream: Resumable[Item], call: Callable[[], Any], lifetime: Lifetime
    ) -> None:
        self._stream = stream
        self._start = call
        self._lifetime = lifetime
        self._wake = asyncio.Event()
        self._is_closed = False
        self.call = call()
        lifetime.add(self)

    async def read(self) -> Item | None:
        """Return the next item; None at the end."""
        while not self._is_closed:
            self._lifetime.check()
            error: WhenceError | None = None
            try:
                async for response in self.call:
                    item = self._stream.receive(response)
                    if item is not None:
                        return item
            except grpc.RpcError as rpc_error:
                error = convert_error(rpc_error)
            except Exception:
                # The stream cannot continue: cancel the call, so that the server sees its end.
                self.call.cancel()
                raise
            except asyncio.CancelledError:
                # gRPC also raises it for the cancellation of its own call.
                if is_cancelled():
                    raise
            # A complete stream is read to its end, so that the call ends with OK.
            if self._has_ended():
                break
            self._lifetime.check()
            delay_s = self._stream.handle_break(error)
            if self._has_ended():
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), delay_s)
            if not self._is_closed:
                self.call = self._start()
        return None

    def _has_ended(self) -> bool:
        return self._stream.complete or self._is_closed

    def interrupt(self) -> None:
        """End the read, or the wait before a retry."""
        self._wake.set()
        with suppress(RuntimeError):  # its event loop is closed
            self.call.cancel()

    def close(self) -> None:
        """End the read, and cancel the call."""
        self._is_closed = True
        self.interrupt()


class _Buffer(Generic[Item]):
    """Items that were read and not yet taken, and the end of the stream."""

    def __init__(self) -> None:
        self._items: deque[Item] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._has_ended = False
        self._error: Exception | None = None

    async def put(self, item: Item) -> None:
        """Add an item; wait until there is space for another."""
        if not self._has_ended:
            self._items.append(item)
            self._arrived.set()
        while len(self._items) >= MOST_AHEAD:
            self._taken.clear()
            await self._taken.wait()

    async def take(self) -> Item | None:
        """Return the next item; None at the end. A cancelled wait takes nothing."""
        while not self._items and not self._has_ended:
            self._arrived.clear()
            await self._arrived.wait()
        if self._items:
            self._taken.set()
            return self._items.popleft()
        if self._error is not None:
            raise self._error
        return None

    def end(self, error: Exception | None = None) -> None:
        """End the stream after its last item, with an error if one is given."""
        if not self._has_ended:
            self._has_ended, self._error = True, error
        self._arrived.set()

    def close(self) -> None:
        """Drop the items, and end the stream."""
        self._items.clear()
        self._taken.set()
        self.end()


async def _fill(reader: _Reader[Item], buffer: _Buffer[Item]) -> None:
    try:
        while (item := await reader.read()) is not None:
            await buffer.put(item)
        buffer.end()
    except asyncio.CancelledError:
        buffer.end(
            CallCancelledError(
                "the task that reads the stream was cancelled", reason="READING_CANCELLED"
            )
        )
        reader.close()
        raise
    except Exception as error:  # noqa: BLE001 - raised again in the reader
        buffer.end(error)


def is_cancelled() -> bool:
    """Return whether the current task was told to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Reads(Generic[Item]):
    """Asynchronous iterator over the results of a read, until one is None.

    Unlike a generator, it continues after a cancelled read.
    """

    def __init__(self, read: Callable[[], Awaitable[Item | None]]) -> None:
        self._read = read

    def __aiter__(self) -> AsyncIterator[Item]:
        return self

    async def __anext__(self) -> Item:
        item = await self._read()
        if item is None:
            raise StopAsyncIteration
        return item
