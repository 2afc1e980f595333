"""Protobuf's delimited format: each message preceded by its length as a varint."""

from collections.abc import Iterator
from typing import NamedTuple

from whence_server.domain.varint import decode_varint, encode_varint

MAX_MESSAGE_BYTES = 1 << 30
"""A longer one is not whence's: its length is garbage."""


class FramingError(ValueError):
    """The bytes are not delimited messages."""


class Frame(NamedTuple):
    """One message in a buffer."""

    message: bytes
    end: int
    """Where the next one begins."""


def framed(message: bytes) -> bytes:
    """A message with its length before it."""
    return encode_varint(len(message)) + message


def frames(buffer: bytes) -> Iterator[Frame]:
    """The whole messages in a buffer, in order; what is incomplete at its end is left.

    Raises:
        FramingError: a length is malformed, or larger than any message.
    """
    begin = 0
    while (header := _length(buffer, begin)) is not None:
        length, begin = header
        if length > MAX_MESSAGE_BYTES:
            raise FramingError(f"a message of {length} bytes is announced")
        end = begin + length
        if end > len(buffer):
            return
        yield Frame(buffer[begin:end], end)
        begin = end


def _length(buffer: bytes, begin: int) -> tuple[int, int] | None:
    try:
        return decode_varint(buffer, begin)
    except ValueError as error:
        raise FramingError("a length is longer than ten bytes") from error
