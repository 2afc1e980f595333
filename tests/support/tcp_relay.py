"""A TCP relay that forgets a connection without a word, as a middlebox does."""

import contextlib
import math
import socket
import threading
import time
from typing import Self

NEVER = 1 << 62


class TcpRelay:
    """Listener on loopback before a server; a context manager.

    From some moment on it drops what both ends of a connection send. Neither is told, and neither's
    close reaches the other. New connections work.

    Args:
        upstream: HOST:PORT of the server.
        forget_after_bytes: size of what the server sends on one connection before the relay
            forgets it; it does so once.

    Attributes:
        target: address for clients.
        forgotten: set once a connection was forgotten.
        forgotten_s: CLOCK_MONOTONIC time of that.
        reconnected_s: time of the first connection after that; NaN before.
    """

    def __init__(self, upstream: str, forget_after_bytes: int = NEVER) -> None:
        self.lead_to(upstream)
        self.forget_after_bytes = forget_after_bytes
        self.forgotten = threading.Event()
        self.forgotten_s = self.reconnected_s = math.nan
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._ends: list[socket.socket] = []

    def lead_to(self, upstream: str) -> None:
        """Take new connections to another server."""
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        _close(self._listener, *self._ends)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                if self.forgotten.is_set() and math.isnan(self.reconnected_s):
                    self.reconnected_s = time.monotonic()
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                self._ends += [client, server]
                connection = _Connection(client, server, self)
                for pump in (connection.send_up, connection.send_down):
                    threading.Thread(target=pump, daemon=True).start()


class _Connection:
    """Connection of a client, and the one to the server that continues it."""

    def __init__(self, client: socket.socket, server: socket.socket, relay: TcpRelay) -> None:
        self._client = client
        self._server = server
        self._relay = relay
        self._num_bytes = 0
        self._is_forgotten = False

    def send_up(self) -> None:
        """Hand on what the client sends."""
        with contextlib.suppress(OSError):
            while data := self._client.recv(65_536):
                if not self._is_forgotten:
                    self._server.sendall(data)
        self._end()

    def send_down(self) -> None:
        """Hand on what the server sends."""
        with contextlib.suppress(OSError):
            while data := self._server.recv(65_536):
                self._num_bytes += len(data)
                is_due = self._num_bytes >= self._relay.forget_after_bytes
                if is_due and not self._relay.forgotten.is_set():
                    self._is_forgotten = True
                    self._relay.forgotten_s = time.monotonic()
                    self._relay.forgotten.set()
                if not self._is_forgotten:
                    self._client.sendall(data)
        self._end()

    def _end(self) -> None:
        if not self._is_forgotten:
            _close(self._client, self._server)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
