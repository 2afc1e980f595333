"""Formatting for the terminal: escaped text, colours by probability, aligned columns."""

import os
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Literal, TextIO

import wcwidth

from whence.tokens import Candidate, Token

ColorMode = Literal["auto", "always", "never"]

_RAMP = (196, 202, 208, 214, 220, 226, 190, 154, 118, 82, 46)
"""Red to green in the 256-colour palette, for probabilities from 0 to 1."""

_REORDERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the order in which a line is displayed."""

_FILLERS = frozenset("\u115f\u1160\u3164\uffa0")
"""Invisible letters of Hangul."""

_JOINING = frozenset("\u200c\u200d\ufe0e\ufe0f")
"""Invisible characters that change the display of the previous character."""

_NAMED_BYTES = re.compile("<0x[0-9A-F]{2}[^>]*>")

TOKEN_COLUMNS = 16
CANDIDATE_COLUMNS = 12
_GAP = "  "


def escape(text: str) -> str:
    """Return the text with escapes for all control characters except newline and tab.

    A model can emit escape sequences, which a terminal would execute.
    """
    return "".join(_escape_character(character) for character in text)


def _escape_character(character: str) -> str:
    if character in "\n\t":
        return character
    if unicodedata.category(character) == "Cc" or character in _REORDERING:
        code = ord(character)
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return character


def quote(text: str) -> str:
    """Return the text in quotes on one line, with escapes for invisible characters."""
    escaped = escape(_show_hidden(text.replace("\\", "\\\\")))
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t") + '"'


def _show_hidden(text: str) -> str:
    """Return the text with the code of each character that is invisible or looks like a space."""
    if text.isascii():
        return text
    return "".join(
        _format_code(character) if _is_hidden(character, before) else character
        for before, character in zip(f" {text}", text, strict=False)
    )


def _format_code(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_hidden(character: str, before: str) -> bool:
    if character in _JOINING:
        return before.isspace()
    kind = unicodedata.category(character)
    return (
        kind in {"Cf", "Zl", "Zp"} or (kind == "Zs" and character != " ") or character in _FILLERS
    )


def wants_color(mode: ColorMode, stream: TextIO) -> bool:
    """Return whether to use colours; "auto": on a terminal without NO_COLOR (no-color.org)."""
    if mode != "auto":
        return mode == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return stream.isatty() and not plain


def paint(text: str, probability: float | None) -> str:
    """Return the text in the colour of its probability, from red to green."""
    if probability is None or not text:
        return text
    color = _RAMP[min(int(probability * len(_RAMP)), len(_RAMP) - 1)]
    return f"\x1b[38;5;{color}m{text}\x1b[39m"


def count_terminal_columns(stream: TextIO) -> int | None:
    """Return the number of columns of the stream's terminal; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if stream.isatty() else None


def format_heading(*, prompt: bool = False) -> str:
    """Return the column names of `format_row`."""
    place = "prompt" if prompt else ""
    return f"{place:>7}  {fit_columns('token', TOKEN_COLUMNS)}  {'p':>6}  {'rank':>5}  runners-up"


def format_row(
    token: Token, *, color: bool, prompt: bool = False, num_columns: int | None = None
) -> str:
    """Return a token's line: place, text, probability, rank, runners-up, requested tokens.

    Args:
        token: the token.
        color: True to show its probability as a colour too.
        prompt: True for a token of the prompt, whose place is its index alone.
        num_columns: maximum width of the line, which shows as many runners-up as fit; None for all.
    """
    place = f"{token.index}" if prompt else f"{token.sequence_index}/{token.index}"
    text = fit_name(token.token_text or token.text, TOKEN_COLUMNS)
    rank = "" if token.rank is None else str(token.rank)
    numbers = f"{format_percent(token.probability):>6}  {rank:>5}"
    cells = [f"{place:>7}", paint(text, token.probability) if color else text, numbers]
    requested = ["| requested", *map(_format_candidate, token.requested_logprobs)]
    if num_columns is None:
        shown = [*_format_runners_up(token), *(requested if len(requested) > 1 else ())]
    else:
        left = num_columns - count_columns(_GAP.join(cells))
        asked = _fit_cells(requested, left)
        asked = asked if len(asked) > 1 else []
        left -= sum(len(_GAP) + count_columns(cell) for cell in asked)
        shown = [*_fit_cells(_format_runners_up(token), left), *asked]
    row = _GAP.join([*cells, *shown]).rstrip()
    return row if num_columns is None else wcwidth.clip(row, 0, num_columns)


def _fit_cells(cells: Iterable[str], num_columns: int) -> list[str]:
    """Return the first cells that fit into a number of columns, each with a gap before it."""
    fitting = []
    for cell in cells:
        num_columns -= len(_GAP) + count_columns(cell)
        if num_columns < 0:
            break
        fitting.append(cell)
    return fitting


def _format_runners_up(token: Token) -> Iterator[str]:
    for candidate in token.candidates:
        if candidate.token_id != token.token_id:
            yield _format_candidate(candidate)


def _format_candidate(candidate: Candidate) -> str:
    text = fit_name(candidate.text, CANDIDATE_COLUMNS)
    return f"{text} {format_percent(candidate.probability):>6}"


def format_percent(probability: float | None) -> str:
    """Format a probability in per cent; "" if it is unknown."""
    return "" if probability is None else f"{probability:.1%}"


def fit_name(text: str, num_columns: int) -> str:
    """Return a token's text in quotes, truncated or padded to a number of terminal columns.

    Named bytes are not truncated: tokens of partial characters often differ in the last byte.
    """
    shown = quote(text)
    return (pad if _NAMED_BYTES.search(text) else fit_columns)(shown, num_columns)


def pad(text: str, num_columns: int) -> str:
    """Return the text padded to a number of terminal columns, without truncation."""
    return text + " " * (num_columns - count_columns(text))


def fit_columns(text: str, num_columns: int) -> str:
    """Return the text truncated or padded to a number of terminal columns."""
    if count_columns(text) > num_columns:
        text = wcwidth.clip(text, 0, num_columns - 1) + "…"
    return pad(text, num_columns)


def count_columns(text: str) -> int:
    """Count the columns that the text takes on a terminal; colours take none."""
    return wcwidth.width(text)
