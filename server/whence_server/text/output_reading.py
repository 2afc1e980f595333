"""Tool calls and reasoning, read from a finished output in the form that its template shows.

Nothing is taken out of the text: what is read is added to it. A call that does not fit its format
stays text. The time grows in proportion to the text.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from whence_server.domain.chat import OutputForms, ParsedReasoning, ParsedToolCall, ToolCall
from whence_server.text.json_calls import (
    MAX_CALLS,
    MalformedError,
    make_call,
    read_calls,
    read_object,
    skip_space,
)
from whence_server.text.marked_text import MarkedText
from whence_server.text.output_formats import (
    CALL_FORMATS_BY_NAME,
    REASONING_FORMATS_BY_NAME,
    CallFormat,
)

MAX_CHARACTERS = 1_000_000
"""Maximum length of an output in which calls and reasoning are looked for."""
MAX_NAME_CHARACTERS = 256
"""Maximum length of a name, or an id, that is no JSON."""
_ID_DIGITS = 9
"""Number of characters of a call's id; Mistral's templates demand it."""


class OutputParts(NamedTuple):
    """Parts of an output."""

    tool_calls: tuple[ParsedToolCall, ...] = ()
    reasoning: ParsedReasoning | None = None


class _Found(NamedTuple):
    """Calls of one piece of the text, [begin, end)."""

    calls: list[ToolCall]
    begin: int
    end: int


def read_output(
    output: str, special_tokens: Sequence[tuple[int, str]], forms: OutputForms, seed: str
) -> OutputParts:
    """Read the reasoning and the tool calls of an output.

    Args:
        output: the output's text.
        special_tokens: its special tokens; see `MarkedText`.
        forms: forms of reasoning and of calls.
        seed: text that calls without an id get one from; the same for the same output.
    """
    if not (forms.tool_calls or forms.reasoning) or len(output) > MAX_CHARACTERS:
        return OutputParts()
    marked = MarkedText(output, special_tokens)
    reasoning, begin = _find_reasoning(marked, forms)
    calls: list[ParsedToolCall] = []
    if forms.tool_calls:
        for found in _find_calls(marked.text, begin, CALL_FORMATS_BY_NAME[forms.tool_calls]):
            first, last = map(marked.count_output_bytes, (found.begin, found.end))
            for call in found.calls:
                named = call if call.id else replace(call, id=_make_id(seed, len(calls)))
                calls.append(ParsedToolCall(named, first, last))
    return OutputParts(tuple(calls), reasoning)


def _make_id(seed: str, number: int) -> str:
    return hashlib.sha256(f"{seed}/{number}".encode()).hexdigest()[:_ID_DIGITS]


def _find_reasoning(marked: MarkedText, forms: OutputForms) -> tuple[ParsedReasoning | None, int]:
    """Return the reasoning, and the place in the text after it.

    Reasoning comes first. It lasts to the text's end if no mark ends it.
    """
    if not forms.reasoning:
        return None, 0
    text, form = marked.text, REASONING_FORMATS_BY_NAME[forms.reasoning]
    inside = skip_space(text, 0)
    if text.startswith(form.begin, inside):
        begin, inside = inside, inside + len(form.begin)
    elif forms.begins_in_reasoning:
        begin = inside = 0
    else:
        return None, 0
    end = text.find(form.end, inside)
    after = len(text) if end < 0 else end + len(form.end)
    inner = text[inside : len(text) if end < 0 else end].strip()
    if not inner and end < 0:
        return None, 0
    first, last = map(marked.count_output_bytes, (begin, after))
    return ParsedReasoning(inner, first, last), after


def _find_calls(text: str, begin: int, form: CallFormat) -> Iterator[_Found]:
    if not form.begin:
        yield from _read_whole(text, begin, form)
        return
    at, num_calls = begin, 0
    for _ in range(MAX_CALLS):
        mark = text.find(form.begin, at)
        if mark < 0:
            return
        try:
            found = _read_marked(text, mark, form)
        except MalformedError:
            at = mark + len(form.begin)
            continue
        num_calls += len(found.calls)
        if num_calls > MAX_CALLS:
            return
        at = found.end
        yield _include_group_marks(text, found, form)


def _read_whole(text: str, begin: int, form: CallFormat) -> Iterator[_Found]:
    """Read an output that is calls and nothing else."""
    at = skip_space(text, begin)
    if form.prefix and text.startswith(form.prefix, at):
        at += len(form.prefix)
    pieces = []
    try:
        while True:
            first = skip_space(text, at)
            calls, end = read_calls(text, first, form)
            pieces.append(_Found(calls, first, end))
            at = skip_space(text, end)
            if at == len(text) or len(pieces) == MAX_CALLS:
                break
            if text.startswith(form.separator, at):
                at += len(form.separator)
    except MalformedError:
        return
    if at == len(text):
        # What is before the first call and after each is a mark or white space.
        ends = [piece.begin for piece in pieces[1:]] + [at]
        begins = [begin, *ends[:-1]]
        for piece, first, end in zip(pieces, begins, ends, strict=True):
            yield _Found(piece.calls, first, end)


def _read_marked(text: str, mark: int, form: CallFormat) -> _Found:
    """Read the calls after a mark.

    Raises:
        MalformedError: they do not fit the format.
    """
    inside = mark + len(form.begin)
    if form.name_end:
        call, end = _read_named(text, inside, form)
        calls = [call]
    else:
        calls, end = read_calls(text, skip_space(text, inside), form)
    return _Found(calls, mark, _find_end(text, end, form))


def _read_named(text: str, at: int, form: CallFormat) -> tuple[ToolCall, int]:
    """Read a call whose name is no JSON."""
    if form.name_begin and not text.startswith(form.name_begin, at):
        raise MalformedError("no name")
    at += len(form.name_begin)
    most = 2 * MAX_NAME_CHARACTERS + len(form.name_end) + len(form.id_begin)
    end = text.find(form.name_end, at, at + most)
    if end < 0:
        raise MalformedError("no end of the name")
    name, call_id = text[at:end], ""
    if form.id_begin:
        name, _, call_id = name.partition(form.id_begin)
    arguments, end = read_object(text, skip_space(text, end + len(form.name_end)))
    return make_call(name.strip(), arguments, call_id.strip()), end


def _find_end(text: str, at: int, form: CallFormat) -> int:
    """Return the place after the mark that ends a call.

    Raises:
        MalformedError: other text is there. At the end of the output, the mark may be cut.
    """
    if not form.end:
        return at
    after = skip_space(text, at)
    for begin in {at, after}:
        if text.startswith(form.end, begin):
            return begin + len(form.end)
    if len(text) - at <= len(form.end) and any(
        form.end.startswith(text[begin:]) for begin in (at, after)
    ):
        return len(text)
    raise MalformedError("no mark after the call")


def _include_group_marks(text: str, found: _Found, form: CallFormat) -> _Found:
    """Extend a piece by the marks of its group, if they are next to it."""
    begin, end = found.begin, found.end
    group = begin - len(form.group_begin)
    if form.group_begin and text.startswith(form.group_begin, group):
        begin = group
    after = skip_space(text, end)
    if form.group_end and text.startswith(form.group_end, after):
        end = after + len(form.group_end)
    return found._replace(begin=begin, end=end)
