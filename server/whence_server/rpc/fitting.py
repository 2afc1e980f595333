"""Shortening of a status to the size of HTTP/2 headers, in which gRPC sends it.

Clients accept 8 KiB of headers by default, and a proxy's buffer may be smaller and holds other
headers too: nginx answers with 502 in place of a larger status. A status therefore takes at most
2 KB on the wire.
"""

from collections.abc import Sequence

from whence_server.domain.errors import FieldViolation

MAX_STATUS_BYTES = 2_000
"""Maximum length of a percent-encoded message and details in base64, together, in bytes."""
MAX_MESSAGE_BYTES = 600
"""Maximum length of a percent-encoded message, in bytes; the details repeat it."""
MAX_NAME_CHARACTERS = 100
"""Maximum length of a field's path, an id or another name."""
MAX_DESCRIPTION_CHARACTERS = 300
"""Maximum length of the description of a field at fault."""


_ESCAPED = bytes(byte for byte in range(256) if not 0x20 <= byte <= 0x7E or byte == ord("%"))
"""Bytes that gRPC percent-encodes with three bytes each."""


def measure_status(message: str, num_details_bytes: int) -> int:
    """Return the length of a status on the wire, without the names of its two headers."""
    return _measure_encoded(message) + (num_details_bytes + 2) // 3 * 4


def truncate_text(text: str, max_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """Return the text, truncated to a number of percent-encoded bytes.

    Lone surrogates become question marks.
    """
    # A character takes at least one byte.
    if len(text) > max_bytes or _measure_encoded(text) > max_bytes:
        text = f"{_truncate_encoded(text[:max_bytes], max_bytes - 3)}..."
    return text.encode(errors="replace").decode()


def truncate_name(text: str, max_characters: int = MAX_NAME_CHARACTERS) -> str:
    """Return the text truncated to a number of characters."""
    if len(text) > max_characters:
        text = text[: max_characters - 3] + "..."
    return text.encode(errors="replace").decode()


def join_violations(
    shown: Sequence[FieldViolation], num_violations: int, max_bytes: int = MAX_MESSAGE_BYTES
) -> str:
    """Return a message of the first violations, as many as fit, and of the number of the others.

    Args:
        shown: the first violations, at least one.
        num_violations: number of all violations.
        max_bytes: maximum length of the percent-encoded message, in bytes.
    """
    message = ""
    for num_named in range(1, len(shown) + 1):
        longer = "; ".join(map(str, shown[:num_named])) + _count_more(num_violations - num_named)
        if _measure_encoded(longer) > max_bytes:
            break
        message = longer
    if message:
        return message
    more = _count_more(num_violations - 1)
    return truncate_text(str(shown[0]), max_bytes - len(more)) + more


def _count_more(num_more: int) -> str:
    return f"; and {num_more} more" if num_more else ""


def _truncate_encoded(text: str, max_bytes: int) -> str:
    num_bytes = _measure_encoded(text)
    end = len(text)
    while num_bytes > max_bytes:
        end -= 1
        num_bytes -= _measure_encoded(text[end])
    return text[:end]


def _measure_encoded(text: str) -> int:
    """Return the number of bytes of a percent-encoded text."""
    encoded = text.encode(errors="replace")
    num_escaped = len(encoded) - len(encoded.translate(None, _ESCAPED))
    return len(encoded) + 2 * num_escaped
