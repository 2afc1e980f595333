"""Tool calls read from a model's JSON, with the text of their arguments as the model wrote it."""

import json
from typing import Any, NamedTuple, NoReturn

from whence_server.domain.chat import ToolCall
from whence_server.domain.errors import InvalidRequestError
from whence_server.text.output_formats import CallFormat
from whence_server.text.strict_json import read_json
from whence_server.text.unicode import LoneSurrogateError, check_unicode

MAX_CALLS = 1_000
"""Maximum number of calls, and of marks that may begin one, in an output."""


class MalformedError(ValueError):
    """Error of a text that is no call."""


class Member(NamedTuple):
    """Value of one member of an object, with its JSON text."""

    value: Any
    text: str


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def read_value(text: str, at: int) -> tuple[Any, int]:
    """Parse the JSON value at a place; return it, and the place after it.

    Raises:
        MalformedError: there is no JSON value, or Python cannot hold it.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise MalformedError(str(error)) from None


def read_object(text: str, at: int) -> tuple[Member, int]:
    """Parse the JSON object at a place; return it, and the place after it.

    Raises:
        MalformedError: there is no JSON object.
    """
    value, end = read_value(text, at)
    if not isinstance(value, dict):
        raise MalformedError("no object")
    return Member(value, text[at:end]), end


def read_calls(text: str, at: int, form: CallFormat) -> tuple[list[ToolCall], int]:
    """Read an object that is a call, or an array of them; return the calls and the place after.

    Raises:
        MalformedError: there is no JSON, or it is no call.
    """
    if text[at : at + 1] != "[":
        call, end = _read_call(text, at, form)
        return [call], end
    calls = []
    end = skip_space(text, at + 1)
    while True:
        call, end = _read_call(text, end, form)
        calls.append(call)
        if len(calls) > MAX_CALLS:
            raise MalformedError(f"more than {MAX_CALLS} calls")
        end = skip_space(text, end)
        if text[end : end + 1] == "]":
            return calls, end + 1
        end = skip_space(text, _skip(text, end, ","))


def _read_call(text: str, at: int, form: CallFormat) -> tuple[ToolCall, int]:
    members, end = _read_members(text, at)
    name = _find(members, form.name_keys)
    arguments = _find(members, form.argument_keys)
    given_id = members.get(form.id_key) if form.id_key else None
    call_id = given_id.value if given_id is not None else ""
    if not isinstance(name.value, str) or not isinstance(call_id, str):
        raise MalformedError("name and id must be texts")
    return make_call(name.value, arguments, call_id), end


def make_call(name: str, arguments: Member, call_id: str = "") -> ToolCall:
    """Return a call whose arguments are an object, or the text of one.

    Raises:
        MalformedError: the name is empty, a text is not valid Unicode, or the arguments are no
            object.
    """
    given = arguments
    if isinstance(given.value, str):
        # Some models write the object once more as a text.
        given, end = read_object(given.value, 0)
        if end != len(arguments.value):
            raise MalformedError("text after the arguments")
    if not name.strip() or not isinstance(given.value, dict):
        raise MalformedError("a call has a name, and an object of arguments")
    try:
        # By the rules for a conversation, so that the call can be sent back in one.
        read_json(given.text, "arguments")
        check_unicode(name + call_id)
    except (InvalidRequestError, LoneSurrogateError) as error:
        raise MalformedError(str(error)) from None
    return ToolCall(name, given.text, call_id)


def _read_members(text: str, at: int) -> tuple[dict[str, Member], int]:
    """Parse an object, keeping the text of each member's value."""
    members: dict[str, Member] = {}
    at = skip_space(text, _skip(text, at, "{"))
    while True:
        key, end = read_value(text, at)
        if not isinstance(key, str) or key in members:
            raise MalformedError("a key is no text, or is there twice")
        begin = skip_space(text, _skip(text, skip_space(text, end), ":"))
        value, end = read_value(text, begin)
        members[key] = Member(value, text[begin:end])
        at = skip_space(text, end)
        if text[at : at + 1] == "}":
            return members, at + 1
        at = skip_space(text, _skip(text, at, ","))


def _find(members: dict[str, Member], keys: tuple[str, ...]) -> Member:
    for key in keys:
        if key in members:
            return members[key]
    raise MalformedError(f"no member {keys[0]!r}")


def skip_space(text: str, at: int) -> int:
    """Return the first place from here on that is no white space of JSON."""
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _skip(text: str, at: int, mark: str) -> int:
    if not text.startswith(mark, at):
        raise MalformedError(f"no {mark!r} at {at}")
    return at + len(mark)
