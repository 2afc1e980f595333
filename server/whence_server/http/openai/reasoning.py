"""Reasoning of an output that streams, divided from the answer that comes after it.

The record keeps the output whole, as the model wrote it: `text.output_reading` finds the reasoning
in it once it has ended. Here the same is found while it streams.
"""

from typing import NamedTuple

from whence_server.text.json_calls import skip_space
from whence_server.text.output_formats import REASONING_FORMATS_BY_NAME, ReasoningFormat


class Divided(NamedTuple):
    """A piece of an output, divided."""

    reasoning: str
    content: str


class ReasoningDivider:
    """Divider of one sequence's text.

    White space around the reasoning, and before the answer after it, belongs to neither.

    Args:
        form: format of reasoning.
        begins_inside: True if the output begins in its reasoning, without a mark.

    Attributes:
        is_inside: True while the text is reasoning.
    """

    def __init__(self, form: ReasoningFormat, *, begins_inside: bool) -> None:
        self._form = form
        self._begins_inside = begins_inside
        self.is_inside = False
        self._is_over = False
        self._has_reasoning = False
        self._trims_content = False
        self._waiting = ""
        """Text that is not divided yet: it may be white space or part of a mark."""
        self._waiting_content = ""
        """The same without special tokens, in case that it turns out to be the answer."""

    def push(self, text: str) -> Divided:
        """Add the output's next text."""
        if self._is_over:
            return Divided("", self._trim(text))
        self._waiting_content += text
        return self._take(text)

    def push_special(self, name: str) -> Divided:
        """Add a special token, which is not in the output's text but may be a mark."""
        return Divided("", "") if self._is_over else self._take(name)

    def _take(self, text: str) -> Divided:
        self._waiting += text
        if not self.is_inside:
            self._begin()
        if self._is_over:
            return Divided("", self._waiting_content)
        return self._divide() if self.is_inside else Divided("", "")

    def _begin(self) -> None:
        """Decide whether the output begins with reasoning, once that can be known."""
        begin, text = self._form.begin, self._waiting
        at = skip_space(text, 0)
        if text.startswith(begin, at):
            self.is_inside, self._waiting = True, text[at + len(begin) :]
        elif not begin.startswith(text[at:]):
            self.is_inside = self._begins_inside
            self._is_over = not self._begins_inside

    def _divide(self) -> Divided:
        """Return what is known of the reasoning, and what comes after it."""
        end = self._form.end
        text = self._waiting if self._has_reasoning else self._waiting.lstrip()
        found = text.find(end)
        if found >= 0:
            self.is_inside, self._is_over, self._trims_content = False, True, True
            return Divided(text[:found].rstrip(), self._trim(text[found + len(end) :]))
        known = text[: len(text) - count_mark_beginning(text, end)].rstrip()
        self._waiting = text[len(known) :]
        self._has_reasoning = self._has_reasoning or bool(known)
        return Divided(known, "")

    def _trim(self, text: str) -> str:
        """Return a text of the answer without the white space that comes after reasoning."""
        if not self._trims_content:
            return text
        trimmed = text.lstrip()
        self._trims_content = not trimmed
        return trimmed


def make_divider(format_name: str, *, begins_inside: bool) -> ReasoningDivider | None:
    """Return the divider for a format of reasoning; None for "", which is no format."""
    form = REASONING_FORMATS_BY_NAME.get(format_name)
    return None if form is None else ReasoningDivider(form, begins_inside=begins_inside)


def count_mark_beginning(text: str, mark: str) -> int:
    """Return the length of the longest beginning of a mark with which a text ends."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
