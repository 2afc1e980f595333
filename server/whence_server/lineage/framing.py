"""Protobuf's delimited format: each message preceded by its length as a varint."""

from collections.abc import Iterator
from typing import NamedTuple

MAX_MESSAGE_BYTES = 1 << 30
"""A longer one is not whence's: its length is garbage."""
_MAX_VARINT_BYTES = 10


class FramingError(ValueError):
    """The bytes are not delimited messages."""


class Frame(NamedTuple):
    """One message in a buffer."""

    message: bytes
    end: int
    """Where the next one begins."""


def framed(message: bytes) -> bytes:
    """A message with its length before it."""
    return varint(len(message)) + message


def varint(number: int) -> bytes:
    """A number at least 0, seven bits a byte, lowest first."""
    octets = bytearray()
    while number > 0x7F:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


def frames(buffer: bytes) -> Iterator[Frame]:
    """The whole messages in a buffer, in order; what is incomplete at its end is left.

    Raises:
        FramingError: a length is malformed, or larger than any message.
    """
    begin = 0
    while (header := _read_varint(buffer, begin)) is not None:
        length, begin = header
        if length > MAX_MESSAGE_BYTES:
            raise FramingError(f"a message of {length} bytes is announced")
        end = begin + length
        if end > len(buffer):
            return
        yield Frame(buffer[begin:end], end)
        begin = end


def _read_varint(buffer: bytes, begin: int) -> tuple[int, int] | None:
    number = 0
    for index in range(_MAX_VARINT_BYTES):
        if begin + index >= len(buffer):
            return None
        octet = buffer[begin + index]
        number |= (octet & 0x7F) << 7 * index
        if octet < 0x80:
            return number, begin + index + 1
    raise FramingError("a length is longer than ten bytes")
