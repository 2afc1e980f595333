"""Encoding of conversations, and of the tool calls and reasoning of outputs, as the contract's."""

from whence.v1 import generation_pb2
from whence_server.domain.chat import (
    ChatInput,
    ChatMessage,
    ChatRecord,
    ParsedReasoning,
    ParsedToolCall,
    ToolCall,
)


def convert_chat_record(record: ChatRecord) -> generation_pb2.ChatRecord:
    """Convert a conversation and the forms in which its output is read."""
    return generation_pb2.ChatRecord(
        input=_convert_input(record.input),
        template_name=record.template_name,
        tool_call_format=record.forms.tool_calls,
        reasoning_format=record.forms.reasoning,
        begins_in_reasoning=record.forms.begins_in_reasoning,
        template_digest=record.template_digest,
    )


def convert_parsed_call(parsed: ParsedToolCall) -> generation_pb2.ParsedToolCall:
    """Convert a tool call of an output."""
    return generation_pb2.ParsedToolCall(
        call=_convert_call(parsed.call),
        text_begin_byte=parsed.begin_byte,
        text_end_byte=parsed.end_byte,
    )


def convert_reasoning(parsed: ParsedReasoning | None) -> generation_pb2.ParsedReasoning | None:
    """Convert the reasoning of an output; None if there is none."""
    if parsed is None:
        return None
    return generation_pb2.ParsedReasoning(
        text=parsed.text, text_begin_byte=parsed.begin_byte, text_end_byte=parsed.end_byte
    )


def _convert_input(chat: ChatInput) -> generation_pb2.ChatInput:
    return generation_pb2.ChatInput(
        messages=map(_convert_message, chat.messages),
        template_arguments_json=chat.template_arguments_json,
        template_name=chat.template_name,
        tools_json=chat.tools_json,
    )


def _convert_message(message: ChatMessage) -> generation_pb2.ChatMessage:
    content = message.content
    return generation_pb2.ChatMessage(
        role=message.role,
        content=content if isinstance(content, str) else "",
        content_parts=[generation_pb2.ContentPart(text=text) for text in content]
        if isinstance(content, tuple)
        else [],
        tool_calls=map(_convert_call, message.tool_calls),
        tool_call_id=message.tool_call_id,
        name=message.name,
        reasoning_content=message.reasoning_content,
        no_content=content is None,
    )


def _convert_call(call: ToolCall) -> generation_pb2.ToolCall:
    return generation_pb2.ToolCall(id=call.id, name=call.name, arguments_json=call.arguments_json)
