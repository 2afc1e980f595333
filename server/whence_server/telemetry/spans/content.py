"""Content of generations as GenAI messages, for operators who turn content capture on.

Source: open-telemetry/semantic-conventions-genai: the JSON schemas of `gen_ai.input.messages`,
`gen_ai.output.messages` and `gen_ai.tool.definitions`, and docs/gen-ai/client-inference.md.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, TypeAlias

from whence.summary import OutputPart, list_output_parts
from whence.v1.generation_pb2 import (
    ChatMessage,
    ChatRecord,
    ContentPolicy,
    GenerationFinished,
    GenerationStarted,
    ParsedReasoning,
    ToolCall,
)
from whence_server.telemetry.spans.finish_reasons import get_conventional_reason

Message: TypeAlias = dict[str, Any]
"""JSON object of the schemas."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_WITH_TEXT = frozenset(
    {ContentPolicy.CONTENT_POLICY_UNSPECIFIED, ContentPolicy.CONTENT_POLICY_FULL}
)
_TOOL = "tool"
"""Role of a message that answers a tool call."""


def keeps_text(started: GenerationStarted) -> bool:
    """Return whether a generation's content policy keeps text on record.

    Otherwise spans have none either: ids must not become text again by the vocabulary.
    """
    return started.content in _WITH_TEXT


def make_input_messages(started: GenerationStarted) -> list[Message]:
    """Make the conventions' messages of a request; none if its text is not recorded.

    A prompt is one message of a user.
    """
    if started.HasField("chat") and started.chat.input.messages:
        return [_make_message(message) for message in started.chat.input.messages]
    if not started.prompt:
        return []
    return [{"role": "user", "parts": [_make_text(started.prompt)]}]


def make_output_messages(finished: GenerationFinished) -> list[Message]:
    """Make the conventions' messages of the outputs, one for each sequence."""
    return [
        {
            "role": "assistant",
            "parts": [_make_output_part(part) for part in list_output_parts(result)],
            "finish_reason": get_conventional_reason(
                result.finish_reason, has_calls=bool(result.tool_calls)
            ),
        }
        for result in finished.sequences
    ]


def make_tool_definitions(started: GenerationStarted) -> list[Message]:
    """Make the conventions' definitions of a request's tools; none if it has no tools."""
    return [_flatten_definition(tool) for tool in _read_tools(started.chat)]


def serialise_messages(messages: list[Message]) -> str | None:
    """Serialise messages as JSON for a span attribute; None if there are none."""
    if not messages:
        return None
    text = json.dumps(messages, ensure_ascii=False, separators=(",", ":"))
    if _LONE_SURROGATE.search(text):
        # A model wrote half of a character into the arguments of a call: its escape stays.
        return json.dumps(messages, separators=(",", ":"))
    return text


def _make_message(message: ChatMessage) -> Message:
    named = {"name": message.name} if message.HasField("name") else {}
    return {"role": message.role, "parts": list(_make_parts(message)), **named}


def _make_parts(message: ChatMessage) -> Iterator[Message]:
    texts = [part.text for part in message.content_parts] or [message.content]
    if message.role == _TOOL:
        call_id = message.tool_call_id or None
        yield {"type": "tool_call_response", "id": call_id, "response": "\n".join(texts)}
        return
    if message.HasField("reasoning_content"):
        yield _make_reasoning(message.reasoning_content)
    if not message.no_content:
        yield from map(_make_text, texts)
    yield from map(_make_call, message.tool_calls)


def _make_output_part(part: OutputPart) -> Message:
    if isinstance(part, str):
        return _make_text(part)
    if isinstance(part, ParsedReasoning):
        return _make_reasoning(part.text)
    return _make_call(part.call)


def _make_text(text: str) -> Message:
    return {"type": "text", "content": text}


def _make_reasoning(text: str) -> Message:
    return {"type": "reasoning", "content": text}


def _make_call(call: ToolCall) -> Message:
    return {
        "type": "tool_call",
        "id": call.id or None,
        "name": call.name,
        "arguments": json.loads(call.arguments_json.strip() or "{}"),
    }


def _read_tools(chat: ChatRecord) -> list[Message]:
    if chat.input.tools_json:
        tools: list[Message] = json.loads(chat.input.tools_json)
        return tools
    arguments = json.loads(chat.input.template_arguments_json or "{}")
    return arguments.get("tools") or []


def _flatten_definition(tool: Message) -> Message:
    """Return a definition of OpenAI's form in that of the conventions; others as they are."""
    function = tool.get("function")
    return {"type": "function", **function} if isinstance(function, dict) else tool
