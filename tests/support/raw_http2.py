"""HTTP/2 frames by hand, for clients that break the rules (RFC 9113)."""

import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
CANCEL = struct.pack(">I", 8)


def make_frame(kind: int, payload: bytes = b"", flags: int = 0, stream: int = 0) -> bytes:
    """Return a frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


GREETING = PREFACE + make_frame(SETTINGS) + make_frame(SETTINGS, flags=ACK)


def make_headers(path: str, **more: str) -> bytes:
    """Return the header block of a gRPC call (RFC 7541), without Huffman codes and the table."""
    literals = {"content-type": "application/grpc", "te": "trailers"} | more
    # POST and http are in the static table; the path's name has its index 4, the authority's 1.
    block = b"\x83\x86\x04" + _make_text(path) + b"\x01" + _make_text("localhost")
    for name, value in literals.items():
        block += b"\x00" + _make_text(name) + _make_text(value)
    return block


def _make_text(text: str) -> bytes:
    raw = text.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, coded = len(raw) - 127, b"\x7f"
    while rest >= 128:
        coded += bytes([rest % 128 + 128])
        rest //= 128
    return coded + bytes([rest]) + raw
