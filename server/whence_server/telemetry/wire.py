"""Protobuf's wire format, where whole messages are put together of serialised parts."""

_LENGTH_DELIMITED = 2


def length_delimited(number: int, payload: bytes) -> bytes:
    """Serialises a field that holds a message, a string or bytes.

    Args:
        number: the field's.
        payload: what it holds, serialised.
    """
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(payload)) + payload


def varint(value: int) -> bytes:
    """Serialises an integer of at least 0."""
    if 0x7F < value < 0x4000:  # the size of most spans
        return bytes((value & 0x7F | 0x80, value >> 7))
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
