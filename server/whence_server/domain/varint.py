"""Protobuf's variable-length integers: seven bits a byte, least significant first.

Source: the Protocol Buffers encoding guide, "Base 128 Varints".
"""

_MAX_BYTES = 10


def encode_varint(value: int) -> bytes:
    """Encode a non-negative integer."""
    # Most are short; without the loop they take half the time.
    if value < 1 << 7:
        return bytes((value,))
    if value < 1 << 14:
        return bytes((value & 0x7F | 0x80, value >> 7))
    if value < 1 << 21:
        return bytes((value & 0x7F | 0x80, value >> 7 & 0x7F | 0x80, value >> 14))
    if value < 1 << 28:
        low, middle, high = value | 0x80, value >> 7 | 0x80, value >> 14 | 0x80
        return bytes((low & 0xFF, middle & 0xFF, high & 0xFF, value >> 21))
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def decode_varint(buffer: bytes | memoryview, begin: int) -> tuple[int, int] | None:
    """Decode the integer at offset `begin` of a buffer.

    Returns:
        The integer and the offset after it; None if the buffer ends within it.

    Raises:
        ValueError: it is longer than ten bytes.
    """
    value = 0
    for index in range(_MAX_BYTES):
        if begin + index >= len(buffer):
            return None
        octet: int = buffer[begin + index]
        value |= (octet & 0x7F) << 7 * index
        if octet < 0x80:
            return value, begin + index + 1
    raise ValueError("a varint has at most ten bytes")
