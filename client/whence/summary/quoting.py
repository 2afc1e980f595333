"""Text of a model or a caller, made safe to show: escaped, in quotes, of bounded length."""

import re
import unicodedata
from collections.abc import Iterator

_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the order in which a line is displayed."""

_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Invisible letters of Hangul."""

_JOINING = frozenset("\u200c\u200d\ufe0e\ufe0f")
"""Invisible characters that change the display of the previous character."""

_FRAGMENT = re.compile("[\udc80-\udcff]+")
"""Bytes that are not UTF-8, decoded with `surrogateescape` (PEP 383)."""

_NAMED = {"\n": "\\n", "\t": "\\t", "\\": "\\\\"}


def escape(text: str) -> str:
    """Return the text with escapes for all control characters except newline and tab.

    A model can emit escape sequences, which a terminal would execute.
    """
    return "".join(_escape_control(character) for character in text)


def quote(text: str) -> str:
    """Return the text in quotes on one line, with escapes for invisible characters."""
    return '"' + "".join(_escape(text)) + '"'


def quote_briefly(text: str, max_characters: int) -> str:
    """Return the text as `quote` does, cut with an ellipsis to a number of characters.

    Quotes in the text are escaped as well, so that the end of the text is certain. An escape is
    never cut.

    Args:
        text: the text.
        max_characters: most characters of the result, its two quotes included.
    """
    shown, room = "", max_characters - 2
    if (
        len(text) <= room
        and text.isascii()
        and text.isprintable()
        and '"' not in text
        and "\\" not in text
    ):
        return f'"{text}"'
    # Each character takes at least one place, so that the rest of a long text is not looked at.
    for escaped in _escape(text[: room + 1]):
        one = '\\"' if escaped == '"' else escaped
        if len(shown) + len(one) > room:
            return f'"{_cut(text, room - 1)}…"'
        shown += one
    return f'"{shown}"'


def decode_token(token: bytes) -> str:
    """Return a token as readable text: bytes that are not UTF-8 are named, as in "<0xF0 0x9F>"."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return _FRAGMENT.sub(_name_bytes, token.decode("utf-8", "surrogateescape"))


def _name_bytes(fragment: re.Match[str]) -> str:
    raw = fragment[0].encode("utf-8", "surrogateescape")
    return f"<{' '.join(f'0x{byte:02X}' for byte in raw)}>"


def _cut(text: str, room: int) -> str:
    shown = ""
    for escaped in _escape(text[:room]):
        one = '\\"' if escaped == '"' else escaped
        if len(shown) + len(one) > room:
            break
        shown += one
    return shown


def _escape(text: str) -> Iterator[str]:
    """Yield each character, or its escape if it is invisible, reordering or a backslash."""
    before = " "
    for character in text:
        if character in _NAMED:
            yield _NAMED[character]
        elif _is_hidden(character, before):
            yield _code(character)
        else:
            yield _escape_control(character)
        before = character


def _escape_control(character: str) -> str:
    if character in "\n\t":
        return character
    if unicodedata.category(character) == "Cc" or character in _REORDERING:
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def _code(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_hidden(character: str, before: str) -> bool:
    if character.isascii():
        return False
    if character in _JOINING:
        return before.isspace()
    kind = unicodedata.category(character)
    return (
        kind in {"Cf", "Zl", "Zp"} or (kind == "Zs" and character != " ") or character in _FILLERS
    )
