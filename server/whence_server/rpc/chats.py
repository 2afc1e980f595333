"""Conversion of conversations from protobuf to the domain, with the field of every fault."""

from collections.abc import Iterator
from itertools import islice

from whence.v1 import generation_pb2
from whence_server.domain.chat import ChatInput, ChatMessage, ToolCall
from whence_server.domain.errors import FieldViolation
from whence_server.domain.limits import Limits
from whence_server.rpc.request_digest import encode_struct

_FAULTS_SHOWN = 8
"""Maximum number of reported faults in messages."""


def convert_chat(
    chat: generation_pb2.ChatInput, struct: str, limits: Limits, violations: list[FieldViolation]
) -> ChatInput:
    """Convert a conversation.

    Args:
        chat: the conversation.
        struct: its `template_arguments` as JSON.
        limits: limits of the server.
        violations: faults are added here.
    """
    if not chat.messages:
        violations.append(FieldViolation("chat.messages", "must hold at least one message"))
    violations += islice(_find_faults(chat), _FAULTS_SHOWN)
    text, most = chat.template_arguments_json, limits.max_template_arguments_bytes
    if text and chat.HasField("template_arguments"):
        violations.append(
            FieldViolation(
                "chat.template_arguments_json",
                "is set, and so is `template_arguments`: set one of them",
            )
        )
    for name in ("template_arguments_json", "tools_json"):
        num_characters = len(getattr(chat, name))
        if num_characters > most:
            violations.append(
                FieldViolation(
                    f"chat.{name}", f"has {num_characters} characters; at most {most} are taken"
                )
            )
    messages = tuple(map(_convert_message, chat.messages))
    return ChatInput(messages, text or struct, chat.template_name, chat.tools_json)


def convert_arguments(
    chat: generation_pb2.ChatInput, limits: Limits, violations: list[FieldViolation]
) -> str:
    """Return the template arguments of a Struct as JSON.

    Args:
        chat: the conversation.
        limits: limits of the server.
        violations: faults are added here.
    """
    field, most = "chat.template_arguments", limits.max_template_arguments_bytes
    if chat.template_arguments.ByteSize() > most:
        num_bytes = chat.template_arguments.ByteSize()
        violations.append(FieldViolation(field, f"has {num_bytes} bytes; at most {most} are taken"))
        return ""
    try:
        return encode_struct(chat.template_arguments)
    except ValueError as error:
        violations.append(FieldViolation(field, f"is no JSON: {error}"))
        return ""


def _convert_message(message: generation_pb2.ChatMessage) -> ChatMessage:
    content: str | tuple[str, ...] | None = message.content
    if message.no_content:
        content = None
    elif message.content_parts:
        content = tuple(part.text for part in message.content_parts)
    return ChatMessage(
        role=message.role,
        content=content,
        tool_calls=tuple(
            ToolCall(call.name, call.arguments_json, call.id) for call in message.tool_calls
        ),
        tool_call_id=message.tool_call_id if message.HasField("tool_call_id") else None,
        name=message.name if message.HasField("name") else None,
        reasoning_content=message.reasoning_content
        if message.HasField("reasoning_content")
        else None,
    )


def _find_faults(chat: generation_pb2.ChatInput) -> Iterator[FieldViolation]:
    """Yield the faults of the messages."""
    for i, message in enumerate(chat.messages):
        field = f"chat.messages[{i}]"
        if not message.role:
            yield FieldViolation(f"{field}.role", "must not be empty")
        kinds = ("content", "content_parts", "no_content")
        given = [name for name in kinds if getattr(message, name)]
        if len(given) > 1:
            others = " and ".join(f"`{name}`" for name in given[:-1])
            yield FieldViolation(f"{field}.{given[-1]}", f"is set, and so is {others}: set one")
        for number, part in enumerate(message.content_parts):
            if part.WhichOneof("part") is None:
                yield FieldViolation(
                    f"{field}.content_parts[{number}]",
                    "has no text: this server takes parts of text alone, no images and no audio",
                )
        for number, call in enumerate(message.tool_calls):
            if not call.name:
                yield FieldViolation(f"{field}.tool_calls[{number}].name", "must not be empty")
