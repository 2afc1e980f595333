"""Bounds on the connections of a small web server: their number, and the time each may take."""

import asyncio
from collections.abc import Callable

MAX_CONNECTIONS = 64
EXCHANGE_S = 10.0


class Connections:
    """Makes the protocols of a listening socket, and ends connections that take too much.

    Where there are too many, the oldest is ended and the newest served: a scrape and a probe take
    milliseconds, so that they get through beside any number of connections that stall.

    Args:
        make: makes the web server's own protocol for a connection.
        max_connections: as many are open at once.
        exchange_s: how long one may stay open, from the first byte of the handshake to the last
            of the answer: slow senders and slow readers alike.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        max_connections: int = MAX_CONNECTIONS,
        exchange_s: float = EXCHANGE_S,
    ) -> None:
        self._make = make
        self._max_connections = max_connections
        self._exchange_s = exchange_s
        # By age: a dict keeps the order.
        self._open: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of one connection."""
        return _Bounded(self, self._make())

    def opened(self, transport: asyncio.Transport) -> None:
        """Take a connection in, in the oldest one's place where there are too many."""
        while len(self._open) >= self._max_connections:
            self._end(next(iter(self._open)))
        loop = asyncio.get_running_loop()
        self._open[transport] = loop.call_later(self._exchange_s, self._end, transport)

    def closed(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        timer = self._open.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def _end(self, transport: asyncio.Transport) -> None:
        self.closed(transport)
        transport.abort()


class _Bounded(asyncio.Protocol):
    """One connection: everything is passed on to the web server's protocol."""

    def __init__(self, connections: Connections, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"expected a transport of a stream, not {type(transport).__name__}")
        self._transport = transport
        self._connections.opened(transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:
            self._connections.closed(self._transport)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
