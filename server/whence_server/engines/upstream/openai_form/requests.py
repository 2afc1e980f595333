"""Requests in the form of OpenAI's API."""

from collections.abc import Mapping
from typing import Any

import orjson

from whence_server.domain.chat import ChatInput, ChatMessage
from whence_server.domain.constraints import Constraint, Language
from whence_server.domain.decoding import Decoding, Strategy
from whence_server.domain.errors import FieldViolation, InvalidRequestError


def make_decoding_fields(options: Mapping[str, str], decoding: Decoding) -> dict[str, Any]:
    """Return the fields of a request for all options that the upstream has.

    Settings are sent even if they are neutral: an upstream may have other defaults, such as those
    of the model's generation config.

    Args:
        options: field of the request by the option of `Decoding`.
        decoding: the settings as applied.
    """
    fields: dict[str, Any] = {}
    for name, wire_name in options.items():
        value = getattr(decoding, name)
        if name == "logit_bias":
            value = {str(token_id): bias for token_id, bias in value}
        elif isinstance(value, tuple):
            value = list(value)
        if name == "seed" and decoding.strategy is not Strategy.SAMPLE:
            continue
        # 0 new tokens stands for as many as the upstream allows.
        if value in ([], {}) or (name == "max_new_tokens" and value == 0):
            continue
        fields[wire_name] = value
    if decoding.strategy is Strategy.GREEDY:
        fields[options["temperature"]] = 0.0
    return fields


def make_chat_fields(chat: ChatInput) -> dict[str, Any]:
    """Return the fields of a conversation.

    Raises:
        InvalidRequestError: the definitions of tools or the template's arguments are not JSON.
    """
    fields: dict[str, Any] = {"messages": [_make_message(message) for message in chat.messages]}
    if chat.tools_json:
        fields["tools"] = _parse(chat.tools_json, "chat.tools_json", list)
    if chat.template_arguments_json:
        fields["chat_template_kwargs"] = _parse(
            chat.template_arguments_json, "chat.template_arguments_json", dict
        )
    return fields


def _make_message(message: ChatMessage) -> dict[str, Any]:
    content: Any = message.content
    if isinstance(content, tuple):
        content = [{"type": "text", "text": text} for text in content]
    fields: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json or "{}"},
            }
            for call in message.tool_calls
        ]
    optional = {
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning_content,
    }
    return fields | {key: value for key, value in optional.items() if value is not None}


def parse_tools(tools_json: str) -> list[Any]:
    """Return definitions of tools; [] for none.

    Raises:
        InvalidRequestError: they are not a JSON array.
    """
    tools: list[Any] = _parse(tools_json, "chat.tools_json", list) if tools_json else []
    return tools


def parse_arguments(arguments_json: str) -> dict[str, Any]:
    """Return a tool call's arguments; {} for none.

    Raises:
        InvalidRequestError: they are not a JSON object.
    """
    if not arguments_json:
        return {}
    arguments: dict[str, Any] = _parse(arguments_json, "chat.messages.tool_calls.arguments", dict)
    return arguments


def _parse(text: str, field: str, kind: type[Any]) -> Any:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(FieldViolation(field, f"is not JSON: {error}")) from None
    if not isinstance(value, kind):
        wanted = "array" if kind is list else "object"
        raise InvalidRequestError(FieldViolation(field, f"must be a JSON {wanted}"))
    return value


def parse_schema(constraint: Constraint) -> Any:
    """Return the JSON Schema of a constraint.

    Raises:
        InvalidRequestError: it is not JSON.
    """
    try:
        return orjson.loads(constraint.text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError(
            FieldViolation(constraint.field, f"is not JSON: {error}")
        ) from None


def make_response_format(constraint: Constraint | None) -> dict[str, Any]:
    """Return the `response_format` of a JSON Schema; {} for no constraint."""
    if constraint is None or constraint.language is not Language.JSON_SCHEMA:
        return {}
    schema = parse_schema(constraint)
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "constraint", "strict": True, "schema": schema},
        }
    }
