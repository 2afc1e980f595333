"""Items of a response's output, and their events: reasoning, a message, function calls."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from whence.v1.generation_pb2 import SequenceResult
from whence_server.http.openai.output_parts import make_calls
from whence_server.http.streams import make_event


class EventWriter:
    """Writer of a response's events, which numbers them."""

    def __init__(self) -> None:
        self._number = 0

    def write(self, kind: str, **fields: object) -> bytes:
        """Return the next event."""
        document = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return make_event(orjson.dumps(document), kind)

    def write_part(self, kind: str, item_id: str, index: int, **fields: object) -> bytes:
        """Return the next event, which concerns the only part of an item."""
        return self.write(kind, item_id=item_id, output_index=index, content_index=0, **fields)

    def write_call(self, index: int, item: Mapping[str, Any]) -> list[bytes]:
        """Return the events of a whole function call."""
        place = {"item_id": item["id"], "output_index": index}
        begun = {**item, "status": "in_progress", "arguments": ""}
        written, name = item["arguments"], item["name"]
        prefix = "response.function_call_arguments"
        return [
            self.write("response.output_item.added", output_index=index, item=begun),
            self.write(f"{prefix}.delta", **place, delta=written),
            self.write(f"{prefix}.done", **place, name=name, arguments=written),
            self.write("response.output_item.done", output_index=index, item=item),
        ]


def make_message(
    generation_id: str, text: str, status: str, logprobs: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return the item of a message."""
    return {
        "id": f"msg_{generation_id}",
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [make_text_part(text, logprobs)],
    }


def make_text_part(text: str, logprobs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def make_reasoning(generation_id: str, text: str, status: str) -> dict[str, Any]:
    """Return the item of reasoning, of which nobody makes a summary."""
    return {
        "id": f"rs_{generation_id}",
        "type": "reasoning",
        "status": status,
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def make_call_items(generation_id: str, result: SequenceResult) -> list[dict[str, Any]]:
    """Return the items of a sequence's tool calls."""
    return [
        {
            "id": f"fc_{generation_id}_{number}",
            "type": "function_call",
            "status": "completed",
            "call_id": call["id"],
            **call["function"],
        }
        for number, call in enumerate(make_calls(result))
    ]
