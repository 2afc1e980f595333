"""Protobuf's wire format, where whole messages are put together of serialised parts."""

from whence_server.domain.varint import encode_varint

FIXED64 = 1
LENGTH_DELIMITED = 2

_MAX_HEADS = 4_096


def tag(number: int, wire_type: int) -> int:
    """Return what stands before a field; one byte for fields up to 15.

    Args:
        number: the field's.
        wire_type: what kind of bytes follow: one of those above.
    """
    return number << 3 | wire_type


def length_delimited(number: int, payload: bytes) -> bytes:
    """Serialise a field that holds a message, a string or bytes.

    Args:
        number: the field's.
        payload: what it holds, serialised.
    """
    return head(number, len(payload)) + payload


def head(number: int, num_bytes: int) -> bytes:
    """Serialise what stands before a length-delimited field's payload.

    Args:
        number: the field's.
        num_bytes: the payload's.
    """
    return encode_varint(tag(number, LENGTH_DELIMITED)) + encode_varint(num_bytes)


class Heads(dict[int, bytes]):
    """What stands before a length-delimited field's payload, by the payload's length.

    Args:
        number: the field's.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, num_bytes: int) -> bytes:
        """Serialise the tag and the length; some thousand are remembered."""
        if len(self) >= _MAX_HEADS:
            self.clear()
        made = self[num_bytes] = head(self._number, num_bytes)
        return made
