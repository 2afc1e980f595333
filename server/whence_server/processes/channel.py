"""Messages between the server and a child process: length-prefixed pickles.

Pickle is safe here, because only the two processes can write to their anonymous socket pair. It
is the fastest encoding for the nested named tuples of a step.
"""

import pickle
import socket
import struct
from typing import Any

HEADER = struct.Struct("!I")
"""Frame header: the payload's length in bytes."""


def encode(message: Any) -> bytes:
    """Return a message as a frame: header and payload."""
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(payload)) + payload


def decode(payload: bytes) -> Any:
    """Return the message in a frame's payload."""
    return pickle.loads(payload)  # noqa: S301 - written by our own other process


def receive(connection: socket.socket) -> Any:
    """Return the next message, blocking until it has arrived.

    Raises:
        EOFError: the other end has closed the connection, or has ended.
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
