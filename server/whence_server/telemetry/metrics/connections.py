"""Bounds on the connections of a small web server: their number, and the duration of each."""

import asyncio
from collections.abc import Callable
from typing import Protocol

MAX_CONNECTIONS = 64
EXCHANGE_S = 10.0


class Connections:
    """Protocol factory of a listening socket that bounds its connections.

    If there are too many connections, the oldest is aborted and the newest served. Scrapes and
    probes take milliseconds, and are therefore served however many connections stall.

    Args:
        make: makes the web server's protocol of a connection.
        max_connections: most connections that are open at once.
        exchange_s: longest duration of a connection, from the handshake to the answer's last
            byte, for slow senders and slow readers alike.
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
        # In order of age, which a dict keeps.
        self._open: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._open)

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of one connection."""
        return RegisteredProtocol(self, self._make())

    def add(self, transport: asyncio.Transport) -> None:
        """Add a connection; abort the oldest if there are too many."""
        while len(self._open) >= self._max_connections:
            self._end(next(iter(self._open)))
        loop = asyncio.get_running_loop()
        self._open[transport] = loop.call_later(self._exchange_s, self._end, transport)

    def remove(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        timer = self._open.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def _end(self, transport: asyncio.Transport) -> None:
        self.remove(transport)
        transport.abort()


class ConnectionRegister(Protocol):
    """Register of open connections, which may end some of them."""

    def add(self, transport: asyncio.Transport) -> None:
        """Add a connection."""

    def remove(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""


class RegisteredProtocol(asyncio.Protocol):
    """Protocol of one connection that is in a register; forwards everything to a web server's."""

    def __init__(self, connections: ConnectionRegister, inner: asyncio.Protocol) -> None:
        self._connections = connections
        self._inner = inner
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Add the connection to the register."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"expected a stream transport, not {type(transport).__name__}")
        self._transport = transport
        self._connections.add(transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the register."""
        if self._transport is not None:
            self._connections.remove(self._transport)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Forward received bytes."""
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """Forward the end of the caller's bytes."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """Forward that the send buffer is full."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Forward that the send buffer has room."""
        self._inner.resume_writing()
