"""Clients that open connections over TLS and then say as little as they can."""

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from raw_http2 import GREETING, HEADERS, PREFACE, make_frame

Address = tuple[str, int]
_DRIP_EACH_S = 0.5
_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Habit:
    """Words of a slow client.

    Attributes:
        name: its name, in words.
        greeting: what it says at once; None for nothing, not even TLS's greeting.
        drip: what it says each half second.
        shakes_hands: whether it speaks TLS to the end of the handshake; otherwise it says the first
            half of TLS's greeting.
    """

    name: str
    greeting: bytes | None
    drip: bytes = b""
    shakes_hands: bool = True


_ON_EVERY_PORT = (
    Habit("says nothing", None, shakes_hands=False),
    Habit("stops in TLS's greeting", b"", shakes_hands=False),
    Habit("says nothing after TLS's handshake", b""),
)
OF_GRPC = (
    *_ON_EVERY_PORT,
    Habit("says HTTP/2's preface byte by byte", PREFACE[:1], b"R"),
    Habit("sends headers without an end", GREETING + make_frame(HEADERS, b"\x83", 0, 1)),
)
OF_HTTP = (
    *_ON_EVERY_PORT,
    Habit("says a header byte by byte", _HEAD[:9], b"x"),
    Habit("says a body byte by byte", _HEAD + b"Content-Length: 9000\r\n\r\n{", b" "),
)


class SlowClient:
    """One connection; it is open until the server ends it.

    Args:
        address: host and port of the server.
        habit: what it says.
        context: TLS of the client.
    """

    def __init__(self, address: Address, habit: Habit, context: ssl.SSLContext) -> None:
        self.name = f"port {address[1]}: {habit.name}"
        self._drip = habit.drip
        raw = socket.create_connection(address, 30)
        self._socket = raw
        self.is_open = True
        with self._noting_the_end():
            if habit.shakes_hands:
                self._socket = context.wrap_socket(raw, server_hostname="127.0.0.1")
                self._socket.sendall(habit.greeting or b"")
            elif habit.greeting is not None:
                raw.sendall(_make_half_greeting(context))
        self._socket.setblocking(False)

    def live(self) -> None:
        """Say the next bit, and note whether the server has ended the connection."""
        with self._noting_the_end():
            if self._drip:
                self._socket.send(self._drip)
            while self._socket.recv(65_536):
                pass
            self.is_open = False  # It was closed in order.

    @contextmanager
    def _noting_the_end(self) -> Iterator[None]:
        try:
            yield
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass  # There is nothing to read yet.
        except OSError:
            self.is_open = False

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        self._socket.close()


def list_patient(
    clients: list[SlowClient], longest_s: float, meanwhile: Callable[[], object]
) -> list[str]:
    """Have clients live until the server has ended all; return the names of those that it has not.

    Args:
        clients: the clients, which are closed at the end.
        longest_s: seconds after which the rest are returned.
        meanwhile: called each half second.
    """
    give_up = time.monotonic() + longest_s
    while any(it.is_open for it in clients) and time.monotonic() < give_up:
        for client in clients:
            if client.is_open:
                client.live()
        meanwhile()
        time.sleep(_DRIP_EACH_S)
    patient = [client.name for client in clients if client.is_open]
    for client in clients:
        client.close()
    return patient


def _make_half_greeting(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    greeting = outgoing.read()
    return greeting[: len(greeting) // 2]
