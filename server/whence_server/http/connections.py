"""Bounds on the connections of the web server: their number, and their time without a request."""

import asyncio
from collections import Counter
from collections.abc import Callable

from whence_server.domain.addresses import group_address
from whence_server.telemetry.metrics.connections import RegisteredProtocol

FIRST_REQUEST_S = 10.0
"""Time from a connection's beginning until the headers of its first request have arrived."""
NEXT_REQUEST_S = 75.0
"""Time from the end of an answer until the headers of the next request have arrived."""


class Connections:
    """Protocol factory of a listening socket that bounds its connections.

    A connection is busy while a request of it is answered, and idle otherwise. If there are too
    many connections, the longest idle one is aborted for the newest; if all are busy, the newest
    is refused.

    Args:
        make: makes the web server's protocol of a connection.
        max_connections: most connections that are open at once.
        max_per_address: most of them that come from one address; 0 for no limit. Loopback has none.
        first_request_s: longest time of a new connection without a request.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        max_connections: int,
        first_request_s: float = FIRST_REQUEST_S,
        *,
        max_per_address: int = 0,
    ) -> None:
        self._make = make
        self._max_connections = max_connections
        self._first_request_s = first_request_s
        self._max_per_address = max_per_address
        self._addresses: dict[asyncio.Transport, str] = {}
        self._num_of_address: Counter[str] = Counter()
        self._busy: set[asyncio.Transport] = set()
        # In the order in which they became idle, which a dict keeps.
        self._idle: dict[asyncio.Transport, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._busy) + len(self._idle)

    def __call__(self) -> asyncio.Protocol:
        """Make the protocol of one connection."""
        return RegisteredProtocol(self, self._make())

    def add(self, transport: asyncio.Transport) -> None:
        """Add a connection; abort it if all others are busy, or its address has too many."""
        address = _get_address(transport) if self._max_per_address else ""
        if address and self._num_of_address[address] >= self._max_per_address:
            transport.abort()
            return
        if len(self) >= self._max_connections:
            if not self._idle:
                transport.abort()
                return
            self._end(next(iter(self._idle)))
        if address:
            self._addresses[transport] = address
            self._num_of_address[address] += 1
        self._set_idle(transport, self._first_request_s)

    def set_busy(self, transport: asyncio.Transport) -> None:
        """Note that a request of the connection has arrived."""
        timer = self._idle.pop(transport, None)
        if timer is not None:
            timer.cancel()
            self._busy.add(transport)

    def set_idle(self, transport: asyncio.Transport) -> None:
        """Note that a request of the connection has been answered."""
        if transport in self._busy:
            self._busy.remove(transport)
            self._set_idle(transport, NEXT_REQUEST_S)

    def remove(self, transport: asyncio.Transport) -> None:
        """Forget a connection."""
        self._busy.discard(transport)
        address = self._addresses.pop(transport, None)
        if address is not None:
            self._num_of_address[address] -= 1
            if not self._num_of_address[address]:
                del self._num_of_address[address]
        timer = self._idle.pop(transport, None)
        if timer is not None:
            timer.cancel()

    def _set_idle(self, transport: asyncio.Transport, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._idle[transport] = loop.call_later(seconds, self._end, transport)

    def _end(self, transport: asyncio.Transport) -> None:
        self.remove(transport)
        transport.abort()


def _get_address(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return group_address(peer[0]) if isinstance(peer, tuple) else ""
