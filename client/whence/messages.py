"""Conversion of conversations, as clients of OpenAI's API send them, to messages of the contract.

Every fault is named by its place: `messages[1].tool_calls[0].function.arguments`. Keys whose value
is None are left out, because OpenAI's own library writes them for every field.
"""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from whence.arguments import encode_json, require_text
from whence.v1 import generation_pb2 as pb

_REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names under which clients send the reasoning of an assistant's message."""

_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", *_REASONING)


def add_message(chat: pb.ChatInput, given: object, where: str) -> None:
    """Append a message to a conversation.

    Args:
        chat: the conversation.
        given: the message, a mapping.
        where: name of its place, for errors.

    Raises:
        TypeError, ValueError: a part of it is not what a message holds.
    """
    fields = _read_mapping(given, where, _KEYS)
    if "role" not in fields:
        raise ValueError(f"{where} has no role: give one, such as 'user'")
    message = chat.messages.add(role=require_text(f"{where}.role", fields["role"]))
    _set_content(message, fields.get("content"), f"{where}.content")
    for number, call in enumerate(
        _require_list(f"{where}.tool_calls", fields.get("tool_calls", ()))
    ):
        message.tool_calls.append(_convert_call(call, f"{where}.tool_calls[{number}]"))
    for name in ("tool_call_id", "name"):
        if name in fields:
            setattr(message, name, require_text(f"{where}.{name}", fields[name]))
    _set_reasoning(message, fields, where)
    if message.no_content and not message.tool_calls and not message.HasField("reasoning_content"):
        raise ValueError(
            f"{where} has no content: only a message with tool calls or reasoning needs none"
        )


def encode_tools(tools: object) -> str:
    """Return definitions of tools as JSON.

    Raises:
        TypeError, ValueError: they are no list of mappings that JSON can hold.
    """
    if isinstance(tools, Mapping):
        raise TypeError("tools must be a list of mappings, not a mapping: [...] around it")
    for number, tool in enumerate(_require_list("tools", tools)):
        if not isinstance(tool, Mapping):
            raise TypeError(f"tools[{number}] must be a mapping, not {type(tool).__name__}")
    return encode_json("tools", tools)


def _set_content(message: pb.ChatMessage, content: object, where: str) -> None:
    if content is None:
        message.no_content = True
    elif isinstance(content, str):
        message.content = require_text(where, content)
    else:
        parts = _require_list(where, content, others="text, or ")
        if not parts:
            raise ValueError(f"{where} has no parts: give text, or at least one part")
        for number, part in enumerate(parts):
            text = _read_text_part(part, f"{where}[{number}]")
            message.content_parts.add(text=text)


def _read_text_part(part: object, where: str) -> str:
    if not isinstance(part, Mapping):
        raise TypeError(f"{where} must be a mapping, not {type(part).__name__}")
    kind = part.get("type")
    if kind != "text":
        raise ValueError(
            f"{where}.type is {kind!r}; the server takes parts of text alone, "
            '{"type": "text", "text": ...}'
        )
    fields = _read_mapping(part, where, ("type", "text"))
    return require_text(f"{where}.text", fields.get("text"))


def _convert_call(given: object, where: str) -> pb.ToolCall:
    # "index" is in the parts of OpenAI's streams, and the message's own order says the same.
    fields = _read_mapping(given, where, ("id", "type", "function", "index"))
    if fields.get("type", "function") != "function":
        raise ValueError(f"{where}.type is {fields['type']!r}; it must be 'function'")
    of_function = f"{where}.function"
    function = _read_mapping(fields.get("function"), of_function, ("name", "arguments"))
    return pb.ToolCall(
        id=require_text(f"{where}.id", fields.get("id", "")),
        name=require_text(f"{of_function}.name", function.get("name")),
        arguments_json=_encode_arguments(function.get("arguments"), f"{of_function}.arguments"),
    )


def _encode_arguments(arguments: object, where: str) -> str:
    """Return arguments as JSON; a text is JSON already, and is sent as it is."""
    if arguments is None:
        return ""
    if isinstance(arguments, str):
        return _check_json(require_text(where, arguments), where)
    if not isinstance(arguments, Mapping):
        raise TypeError(f"{where} must be text or a mapping, not {type(arguments).__name__}")
    return encode_json(where, arguments, separators=(", ", ": "))


def _check_json(text: str, where: str) -> str:
    try:
        is_object = not text.strip() or isinstance(json.loads(text), dict)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if not is_object:
        raise ValueError(f"{where} is no JSON object: {text[:64]!r}")
    return text


def _set_reasoning(message: pb.ChatMessage, fields: Mapping[str, Any], where: str) -> None:
    given = [name for name in _REASONING if name in fields]
    texts = [require_text(f"{where}.{name}", fields[name]) for name in given]
    if len(set(texts)) > 1:
        names = " and ".join(f"`{name}`" for name in given)
        raise ValueError(f"{where}: {names} contradict: give one of them")
    if texts:
        message.reasoning_content = texts[0]


def _read_mapping(given: object, where: str, known: Sequence[str]) -> dict[str, Any]:
    """Return a mapping's members that are not None; raise for members that nothing reads.

    Empty lists and mappings among the latter are left out, too: they say nothing.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"{where} must be a mapping, not {type(given).__name__}")
    fields = {key: value for key, value in given.items() if value is not None}
    for key in tuple(fields):
        if key not in known and fields[key] in ([], {}, ()):
            del fields[key]
        elif key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has {key!r}, which no message carries{hint}")
    return fields


def _require_list(where: str, value: Any, others: str = "") -> Sequence[Any]:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return value
    raise TypeError(f"{where} must be {others}a list, not {type(value).__name__}")
