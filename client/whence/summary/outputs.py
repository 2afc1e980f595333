"""Parts of an output: text, reasoning and tool calls, in their order."""

from collections.abc import Iterator
from typing import TypeAlias

from whence.v1.generation_pb2 import ParsedReasoning, ParsedToolCall, SequenceResult

OutputPart: TypeAlias = str | ParsedReasoning | ParsedToolCall


def list_output_parts(result: SequenceResult) -> list[OutputPart]:
    """Return the parts of an output in the order of its text.

    Text beside reasoning or calls has no white space at its ends, and is left out if it is empty.
    An output that was not taken apart is its text, unchanged.
    """
    marked: list[ParsedReasoning | ParsedToolCall] = list(result.tool_calls)
    if result.HasField("reasoning"):
        marked.insert(0, result.reasoning)
    return list(_take_apart(result.text.encode(), marked)) if marked else [result.text]


def _take_apart(
    data: bytes, marked: list[ParsedReasoning | ParsedToolCall]
) -> Iterator[OutputPart]:
    begin = 0
    for part in marked:
        if text := data[begin : part.text_begin_byte].decode(errors="replace").strip():
            yield text
        yield part
        begin = max(begin, part.text_end_byte)
    if text := data[begin:].decode(errors="replace").strip():
        yield text
