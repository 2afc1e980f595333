"""Truncation of error texts to the size of HTTP/2 headers, in which gRPC sends a status.

Clients and many proxies accept 8 KiB of headers by default. A larger status reaches the caller as
RESOURCE_EXHAUSTED, without its message.
"""

from collections.abc import Sequence

from whence_server.domain.errors import FieldViolation

MAX_MESSAGE_BYTES = 2_000
"""Maximum length of a percent-encoded status message, in bytes."""
MAX_VIOLATIONS = 32
"""Maximum number of fields at fault in one status."""
_MAX_VIOLATION_BYTES = 2_000
_MAX_WORD_BYTES = 400
"""Maximum length of a field's path, a description or a value of an ErrorInfo, in bytes."""


def truncate_text(text: str, max_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """Return the text, truncated to a number of percent-encoded bytes.

    Lone surrogates become question marks. gRPC percent-encodes "%" and all bytes that are not
    printable ASCII with three bytes each.
    """
    num_bytes = 0
    for position, character in enumerate(text):
        num_bytes += _measure_encoded(character)
        if num_bytes > max_bytes:
            text = f"{_truncate_encoded(text[:position], max_bytes - 3)}..."
            break
    return text.encode(errors="replace").decode()


def truncate_word(text: str) -> str:
    """Return the text truncated to the maximum for a path, a description or an id."""
    return truncate_text(text, _MAX_WORD_BYTES)


def select_violations(violations: Sequence[FieldViolation]) -> list[FieldViolation]:
    """Return the first violations, truncated, as many as fit into a status."""
    fitting_ones: list[FieldViolation] = []
    num_bytes = 0
    for violation in violations[:MAX_VIOLATIONS]:
        shortened = FieldViolation(
            truncate_word(violation.field), truncate_word(violation.description)
        )
        num_bytes += len(shortened.field.encode()) + len(shortened.description.encode())
        if fitting_ones and num_bytes > _MAX_VIOLATION_BYTES:
            break
        fitting_ones.append(shortened)
    return fitting_ones


def _truncate_encoded(text: str, max_bytes: int) -> str:
    num_bytes = sum(map(_measure_encoded, text))
    end = len(text)
    while num_bytes > max_bytes:
        end -= 1
        num_bytes -= _measure_encoded(text[end])
    return text[:end]


def _measure_encoded(character: str) -> int:
    if " " <= character <= "~" and character != "%":
        return 1
    return 3 * len(character.encode(errors="replace"))
