"""Protobuf's delimited format: a varint length before each message."""

from collections.abc import Iterator
from typing import NamedTuple

from whence_server.domain.varint import decode_varint, encode_varint

MAX_MESSAGE_BYTES = 1 << 30
"""Largest length that is accepted; a larger one is a sign of damage."""


class FramingError(ValueError):
    """The bytes are not delimited messages."""


class Frame(NamedTuple):
    """One message in a buffer."""

    message: bytes
    end: int
    """Offset in the buffer of the next message's length."""


def frame_message(message: bytes) -> bytes:
    """Return a message with its length before it."""
    return encode_varint(len(message)) + message


def iterate_frames(buffer: bytes) -> Iterator[Frame]:
    """Yield the whole messages in a buffer, in order; an incomplete one at the end is left out.

    Raises:
        FramingError: a length is malformed, or above `MAX_MESSAGE_BYTES`.
    """
    begin = 0
    while (header := _read_length(buffer, begin)) is not None:
        length, begin = header
        if length > MAX_MESSAGE_BYTES:
            raise FramingError(
                f"a message has the length {length}; the largest is {MAX_MESSAGE_BYTES}"
            )
        end = begin + length
        if end > len(buffer):
            return
        yield Frame(buffer[begin:end], end)
        begin = end


def _read_length(buffer: bytes, begin: int) -> tuple[int, int] | None:
    try:
        return decode_varint(buffer, begin)
    except ValueError as error:
        raise FramingError("a length is longer than ten bytes") from error
