"""Keeps error texts within what gRPC carries: a status travels in HTTP/2 headers.

Clients take 8 KiB of headers by default, and many proxies no more either. An answer beyond that
reaches the caller as RESOURCE_EXHAUSTED, without the reason that it was to give.
"""

from collections.abc import Sequence

from whence_server.domain.errors import FieldViolation

MAX_MESSAGE_BYTES = 2_000
"""Length of a status message as HTTP/2 carries it, percent-encoded."""
MAX_VIOLATIONS = 32
"""Fields at fault that one answer names."""
_MAX_VIOLATION_BYTES = 2_000
_MAX_WORD_BYTES = 400
"""Length of one field's path, one description or one value of an ErrorInfo."""


def fitting(text: str, max_bytes: int = MAX_MESSAGE_BYTES) -> str:
    """Return the text, cut where it would take more than that many bytes in a header.

    What has no UTF-8, a lone surrogate, becomes a question mark. gRPC percent-encodes whatever is
    not printable ASCII, and "%": three bytes for each byte.
    """
    num_bytes = 0
    for position, character in enumerate(text):
        num_bytes += _encoded_size(character)
        if num_bytes > max_bytes:
            text = f"{_cut(text[:position], max_bytes - 3)}..."
            break
    return text.encode(errors="replace").decode()


def short(text: str) -> str:
    """Return the text as one word of an error: a path, a description, an id."""
    return fitting(text, _MAX_WORD_BYTES)


def named(violations: Sequence[FieldViolation]) -> list[FieldViolation]:
    """Return those of the violations, from the first on, that an answer has room for."""
    fitting_ones: list[FieldViolation] = []
    num_bytes = 0
    for violation in violations[:MAX_VIOLATIONS]:
        shortened = FieldViolation(short(violation.field), short(violation.description))
        num_bytes += len(shortened.field.encode()) + len(shortened.description.encode())
        if fitting_ones and num_bytes > _MAX_VIOLATION_BYTES:
            break
        fitting_ones.append(shortened)
    return fitting_ones


def _cut(text: str, max_bytes: int) -> str:
    num_bytes = sum(map(_encoded_size, text))
    end = len(text)
    while num_bytes > max_bytes:
        end -= 1
        num_bytes -= _encoded_size(text[end])
    return text[:end]


def _encoded_size(character: str) -> int:
    if " " <= character <= "~" and character != "%":
        return 1
    return 3 * len(character.encode(errors="replace"))
