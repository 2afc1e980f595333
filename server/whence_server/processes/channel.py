"""Messages between the front and a process that it started: length-prefixed pickles.

Pickle, because both ends are one program that started the other over an anonymous socket pair:
nobody else can write to it, and nothing is faster for the trees of named tuples that a step is.
"""

import pickle
import socket
import struct
from typing import Any

HEADER = struct.Struct("!I")
"""The payload's length in bytes."""


def encode(message: Any) -> bytes:
    """The message as it goes over the socket."""
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(payload)) + payload


def decode(payload: bytes) -> Any:
    """The message in a frame's payload."""
    return pickle.loads(payload)  # noqa: S301 - written by our own other process


def receive(connection: socket.socket) -> Any:
    """Blocks for the next message.

    Raises:
        EOFError: the other end has closed, or is gone.
    """
    (length,) = HEADER.unpack(_read(connection, HEADER.size))
    return decode(_read(connection, length))


def _read(connection: socket.socket, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = connection.recv(min(length - len(parts), 1 << 20))
        if not part:
            raise EOFError("the other process has closed the connection")
        parts += part
    return bytes(parts)
