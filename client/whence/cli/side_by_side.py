"""Tokens of a branch beside those of its parent, line by line as `diff -y` shows two files."""

from collections.abc import Iterable, Iterator, Sequence

from whence.cli.render import TOKEN_COLUMNS, fit_columns, fit_name, format_percent, paint
from whence.client import Generation
from whence.summary import count, quote
from whence.tokens import Token

_SAME, _OTHER, _LEFT, _RIGHT, _UNKNOWN = " ", "|", "<", ">", "?"


class Comparison:
    """Comparison of a branch's tokens with those of its parent, as they come.

    Args:
        parent: tokens of the repeated sequence, by index from 0.
        is_running: True if the parent went on after they were read.

    Attributes:
        num_tokens: number of the branch's tokens so far.
        first_other: index of the first token that differs; None if none does.
    """

    def __init__(self, parent: Sequence[Token], *, is_running: bool = False) -> None:
        self.parent = parent
        self._is_running = is_running
        self.num_tokens = 0
        self.first_other: int | None = None
        self._num_same_after = 0

    def take(self, token: Token) -> str:
        """Compare the branch's next token; return the mark of its line."""
        self.num_tokens += 1
        if token.index >= len(self.parent):
            # A parent that goes on may have the same token by now.
            mark = _UNKNOWN if self._is_running else _RIGHT
        else:
            mark = _SAME if self.parent[token.index].token_id == token.token_id else _OTHER
        if mark not in {_SAME, _UNKNOWN} and self.first_other is None:
            self.first_other = token.index
        elif mark == _SAME and self.first_other is not None:
            self._num_same_after += 1
        return mark

    def describe(self, *, is_cut_off: bool = False) -> str:
        """Return where the two part, in words.

        Args:
            is_cut_off: True if the branch ended by a cancel or a failure, and not by its tokens.
        """
        num_known = min(self.num_tokens, len(self.parent))
        if self.first_other is None:
            if self._is_running and self.num_tokens >= len(self.parent):
                compared = count(num_known, "token")
                return f"it is equal to its parent as far as that had come ({compared})"
            if self.num_tokens == len(self.parent):
                return "it is equal to its parent"
            if is_cut_off:
                compared = count(num_known, "token")
                return f"it is equal to its parent as far as it goes ({compared})"
        place = self.num_tokens if self.first_other is None else self.first_other
        later = (num_known if self._is_running else self.num_tokens) - place - 1
        if later <= 0:
            return f"it parts from its parent at step {place}"
        return (
            f"it parts from its parent at step {place}, and {self._num_same_after} of the "
            f"{count(later, 'token')} after that are the parent's"
        )


def format_rows(
    comparison: Comparison, tokens: Iterable[Token], branch: Generation, *, color: bool
) -> Iterator[str]:
    """Yield the lines of a branch's tokens, as they come.

    Tokens that are repeated under the same prompt are in one line.
    """
    yield _format_heading()
    repeated: list[Token] = []
    num_last = 0
    for token in tokens:
        fork = branch.started.fork if branch.started is not None else None
        mark = comparison.take(token)
        num_last = token.index + 1
        if fork is not None and token.index < fork.step and not fork.changes_prompt:
            repeated.append(token)
            continue
        if repeated:
            yield _format_repeated(repeated)
            repeated = []
        given = fork is not None and token.index < fork.num_forced_steps
        theirs = None if mark in {_RIGHT, _UNKNOWN} else comparison.parent[token.index]
        yield _format_row(token.index, theirs, token, mark, color=color, given=given)
    if repeated:
        yield _format_repeated(repeated)
    for theirs in comparison.parent[num_last:]:
        yield _format_row(theirs.index, theirs, None, _LEFT, color=color)


def _format_heading() -> str:
    names = [f"{fit_columns(name, TOKEN_COLUMNS)}  {'p':>6}" for name in ("parent", "branch")]
    return f"{'step':>7}  {names[0]}     {names[1]}"


def _format_repeated(tokens: Sequence[Token]) -> str:
    first, last = tokens[0].index, tokens[-1].index
    place = str(first) if first == last else f"{first}-{last}"
    return f"{place:>7}  {quote(''.join(token.text for token in tokens))}"


def _format_row(
    index: int,
    theirs: Token | None,
    ours: Token | None,
    mark: str,
    *,
    color: bool,
    given: bool = False,
) -> str:
    left, right = (_format_cell(token, color=color) for token in (theirs, ours))
    row = f"{index:>7}  {left}  {mark}  {right}"
    return f"{row}  given" if given else row.rstrip()


def _format_cell(token: Token | None, *, color: bool) -> str:
    if token is None:
        return " " * (TOKEN_COLUMNS + 8)
    name = fit_name(token.token_text or token.text, TOKEN_COLUMNS, token.token_id)
    shown = paint(name, token.probability) if color else name
    return f"{shown}  {format_percent(token.probability):>6}"
