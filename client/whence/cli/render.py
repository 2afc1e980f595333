"""Formatting for the terminal: escaped text, colours by probability, aligned columns."""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from typing import Literal, TextIO

import wcwidth

from whence.summary import name_by_id, quote
from whence.tokens import Candidate, Token

ColorMode = Literal["auto", "always", "never"]

_RAMP = (196, 202, 208, 214, 220, 226, 190, 154, 118, 82, 46)
"""Red to green in the 256-colour palette, for probabilities from 0 to 1."""

_NAMED_BYTES = re.compile("<0x[0-9A-F]{2}[^>]*>")

TOKEN_COLUMNS = 16
CANDIDATE_COLUMNS = 12
_GAP = "  "


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
    name = token.token_text or token.text or token.reasoning_text
    text = fit_name(name, TOKEN_COLUMNS, token.token_id)
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
        if not is_chosen(candidate, token):
            yield _format_candidate(candidate)


def is_chosen(candidate: Candidate, token: Token) -> bool:
    """Return whether a candidate is the token that was chosen."""
    if candidate.token_id is None or token.token_id is None:
        return candidate.text == token.token_text
    return candidate.token_id == token.token_id


def _format_candidate(candidate: Candidate) -> str:
    text = fit_name(candidate.text, CANDIDATE_COLUMNS, candidate.token_id)
    return f"{text} {format_percent(candidate.probability):>6}"


def format_percent(probability: float | None) -> str:
    """Format a probability in per cent; "" if it is unknown."""
    return "" if probability is None else f"{probability:.1%}"


def fit_name(text: str, num_columns: int, token_id: int | None = None) -> str:
    """Return a token's text in quotes, truncated or padded to a number of terminal columns.

    Named bytes are not truncated: tokens of partial characters often differ in the last byte. A
    token without a text, such as one of a model that is no longer served, is named by its id.
    """
    if not text and token_id is not None:
        return fit_columns(name_by_id(token_id), num_columns)
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
