"""Bound on the connections of one address to gRPC's ports, and to HTTP's during TLS handshakes.

gRPC bounds the connections of a port, and tells nobody of a connection before its first call;
asyncio tells nobody of one before its TLS handshake is done. But the connections are descriptors
of this process: every second they are counted by the address at their other end, and the newest
ones of an address that has too many are shut down, as if their client had closed them.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from whence_server.domain.addresses import group_address

_log = logging.getLogger(__name__)

_WATCH_S = 1.0
_DESCRIPTORS = ("/proc/self/fd", "/dev/fd")


class AddressBound:
    """Task that shuts down connections of an address that has too many.

    Args:
        ports: ports that this process listens on.
        most: most connections of one address.
        group: names the client of an address; "" for one without a limit.
    """

    def __init__(
        self, ports: Collection[int], most: int, group: Callable[[str], str] = group_address
    ) -> None:
        self._ports = frozenset(ports)
        self._most = most
        self._group = group
        self._known: set[tuple[str, int]] = set()
        """Addresses and ports at the other end, at the last count."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start watching in the running event loop."""
        self._task = asyncio.create_task(self._watch(), name="address-bound")

    async def close(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            # Counting 4,000 connections takes some 20 ms.
            num_closed = await asyncio.to_thread(self.close_excess)
            if num_closed:
                _log.warning(
                    "%d connections were closed: their addresses have more than %d each "
                    "(--max-connections-per-address)",
                    num_closed,
                    self._most,
                )

    def close_excess(self) -> int:
        """Shut down the newest connections of each address with too many; return their number."""
        by_client: dict[str, list[tuple[str, int]]] = {}
        for peer, _ in self._list_connections():
            by_client.setdefault(self._group(peer[0]), []).append(peer)
        excess: set[tuple[str, int]] = set()
        for client, peers in by_client.items():
            if client and len(peers) > self._most:
                # Those of the last count are older: they stay.
                peers.sort(key=lambda peer: peer not in self._known)
                excess.update(peers[self._most :])
        self._known = {peer for peers in by_client.values() for peer in peers} - excess
        if excess:
            for peer, connection in self._list_connections():
                if peer in excess:
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
        return len(excess)

    def _list_connections(self) -> Iterator[tuple[tuple[str, int], socket.socket]]:
        """Yield the address and port of each client, with a handle that lasts until the next.

        The handle is the owner's own descriptor. A copy would have to be closed, and if the number
        has become that of a database's file meanwhile, closing a copy would release its locks.
        """
        for descriptor in _list_descriptors():
            try:
                connection = socket.socket(fileno=descriptor)
            except OSError:
                continue  # no socket, or closed meanwhile
            try:
                if connection.family in {socket.AF_INET, socket.AF_INET6}:
                    with suppress(OSError):  # not connected
                        peer = connection.getpeername()
                        if connection.getsockname()[1] in self._ports:
                            yield (peer[0], peer[1]), connection
            finally:
                connection.detach()


def _list_descriptors() -> list[int]:
    for folder in _DESCRIPTORS:
        with suppress(OSError):
            return [int(path.name) for path in Path(folder).iterdir()]
    return []
