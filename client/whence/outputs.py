"""Tool calls and reasoning of an output, and the output as a message."""

import json
from dataclasses import dataclass
from typing import Any

from whence.summary import list_output_parts
from whence.v1 import generation_pb2 as pb


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call in an output."""

    id: str
    """Id that the message with the tool's result refers to."""
    name: str
    arguments_json: str
    """Arguments as the model wrote them, the text of a JSON object."""
    text_bytes: range
    """Place in the sequence's text that it was read from, in UTF-8 bytes."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments."""
        parsed: dict[str, Any] = json.loads(self.arguments_json or "{}")
        return parsed


def convert_tool_call(parsed: pb.ParsedToolCall) -> ToolCall:
    """Convert a tool call of the contract."""
    call = parsed.call
    place = range(parsed.text_begin_byte, parsed.text_end_byte)
    return ToolCall(call.id, call.name, call.arguments_json, place)


def make_message(result: pb.SequenceResult) -> dict[str, Any]:
    """Return an output as an assistant's message of OpenAI's form, to be sent back.

    Reasoning and calls are taken out of the content, which is None if nothing else is there.
    """
    texts = [part for part in list_output_parts(result) if isinstance(part, str)]
    taken_apart = bool(result.tool_calls) or result.HasField("reasoning")
    content = "\n".join(texts) or (None if taken_apart else "")
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if result.HasField("reasoning"):
        message["reasoning_content"] = result.reasoning.text
    if result.tool_calls:
        message["tool_calls"] = [_describe_call(parsed.call) for parsed in result.tool_calls]
    return message


def _describe_call(call: pb.ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments_json}
    return {"id": call.id, "type": "function", "function": function}
