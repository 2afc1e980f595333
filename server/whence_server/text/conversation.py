"""A conversation as a chat template receives it: objects of OpenAI's form.

Fields have the order of this module, whatever their order in the request was. Absent fields are
left out, as transformers' `apply_chat_template` leaves out those that are None.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from whence_server.domain.chat import ChatMessage, ToolCall
from whence_server.domain.errors import FieldViolation, InvalidRequestError
from whence_server.text.strict_json import name_kind, read_json
from whence_server.text.unicode import LoneSurrogateError, check_unicode

Turn: TypeAlias = dict[str, Any]
"""One message, as a template receives it."""

REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
"""Names under which transformers passes a message's reasoning; the first is the standard one."""


class JsonObject(dict[str, Any]):
    """A JSON object that writes itself as its JSON text where a template joins it to text.

    Templates differ in what they take: most filter a call's arguments by `tojson`, others (as
    DeepSeek's) join them to text, and so take the text alone.
    """

    def __init__(self, value: dict[str, Any], text: str) -> None:
        super().__init__(value)
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __add__(self, other: str) -> str:
        return self._text + other

    def __radd__(self, other: str) -> str:
        return other + self._text


def build_conversation(messages: Sequence[ChatMessage], *, takes_parts: bool) -> list[Turn]:
    """Return the messages as a template receives them.

    Args:
        messages: the conversation, oldest first.
        takes_parts: True if the template iterates over parts of a content; else their texts are
            joined by line breaks.

    Raises:
        InvalidRequestError: a text is not valid Unicode, or arguments are no JSON object.
    """
    return [
        _build_turn(message, f"chat.messages[{i}]", takes_parts=takes_parts)
        for i, message in enumerate(messages)
    ]


def _build_turn(message: ChatMessage, field: str, *, takes_parts: bool) -> Turn:
    _check_texts(message, field)
    turn: Turn = {"role": message.role}
    if isinstance(message.content, tuple):
        if takes_parts:
            turn["content"] = [{"type": "text", "text": text} for text in message.content]
        else:
            turn["content"] = "\n".join(message.content)
    elif message.content is not None:
        turn["content"] = message.content
    if message.tool_calls:
        turn["tool_calls"] = [
            _build_call(call, f"{field}.tool_calls[{i}]")
            for i, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning_content is not None:
        reasoning = message.reasoning_content
        turn = {"thinking": reasoning, **turn, "reasoning_content": reasoning}
    return turn


def _build_call(call: ToolCall, field: str) -> dict[str, Any]:
    function = {
        "name": call.name,
        "arguments": read_call_arguments(call.arguments_json, f"{field}.arguments_json"),
    }
    return {**({"id": call.id} if call.id else {}), "type": "function", "function": function}


def read_call_arguments(text: str, field: str) -> JsonObject:
    """Parse a call's arguments; "" is {}.

    Raises:
        InvalidRequestError: the text is not a JSON object.
    """
    text = text.strip() or "{}"
    value = read_json(text, field)
    if not isinstance(value, dict):
        raise InvalidRequestError(
            FieldViolation(field, f"must be a JSON object, not {name_kind(value)}")
        )
    return JsonObject(value, text)


def _check_texts(message: ChatMessage, field: str) -> None:
    """Refuse texts that a prompt cannot hold."""
    for name, text in _list_texts(message):
        try:
            check_unicode(text)
        except LoneSurrogateError as error:
            raise InvalidRequestError(FieldViolation(f"{field}.{name}", str(error))) from None


def _list_texts(message: ChatMessage) -> Iterator[tuple[str, str]]:
    """Yield the message's texts with their fields' names; JSON is checked when it is read."""
    yield "role", message.role
    if isinstance(message.content, tuple):
        for i, text in enumerate(message.content):
            yield f"content_parts[{i}].text", text
    else:
        yield "content", message.content or ""
    for i, call in enumerate(message.tool_calls):
        yield f"tool_calls[{i}].id", call.id
        yield f"tool_calls[{i}].name", call.name
    yield "tool_call_id", message.tool_call_id or ""
    yield "name", message.name or ""
    yield "reasoning_content", message.reasoning_content or ""
