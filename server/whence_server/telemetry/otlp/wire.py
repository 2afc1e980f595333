"""Protobuf's wire format, for messages that are joined from serialised parts."""

from whence_server.domain.varint import encode_varint

FIXED64 = 1
LENGTH_DELIMITED = 2

_MAX_HEADS = 4_096


def make_tag(number: int, wire_type: int) -> int:
    """Return a field's tag; one byte for field numbers up to 15.

    Args:
        number: the field's number.
        wire_type: FIXED64 or LENGTH_DELIMITED.
    """
    return number << 3 | wire_type


def encode_length_delimited(number: int, payload: bytes) -> bytes:
    """Serialise a field that holds a message, a string or bytes.

    Args:
        number: the field's number.
        payload: the serialised value.
    """
    return encode_head(number, len(payload)) + payload


def encode_head(number: int, num_bytes: int) -> bytes:
    """Serialise a length-delimited field's tag and length, which precede its payload.

    Args:
        number: the field's number.
        num_bytes: length of the payload.
    """
    return encode_varint(make_tag(number, LENGTH_DELIMITED)) + encode_varint(num_bytes)


class Heads(dict[int, bytes]):
    """Cache of a length-delimited field's tag and length, by the length of the payload.

    Args:
        number: the field's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, num_bytes: int) -> bytes:
        """Serialise and cache the tag and a length."""
        if len(self) >= _MAX_HEADS:
            self.clear()
        made = self[num_bytes] = encode_head(self._number, num_bytes)
        return made
