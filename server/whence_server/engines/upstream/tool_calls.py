"""Tool calls of a message, joined from the pieces that an upstream streams."""

import json
from typing import Any

from whence_server.domain.chat import ToolCall

MAX_CALLS = 1_000
"""Maximum number of calls of one sequence; further ones are left out."""


class CallPieces:
    """Tool calls of one sequence so far, in OpenAI's form of pieces."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, str]] = {}

    def add(self, pieces_json: str) -> None:
        """Add pieces: a JSON array of {index, id, function: {name, arguments}}.

        Raises:
            ValueError: they have another form.
        """
        pieces = json.loads(pieces_json)
        if not isinstance(pieces, list):
            raise ValueError(f"tool calls must be an array, not {type(pieces).__name__}")  # noqa: TRY004
        for place, piece in enumerate(pieces):
            self._add_one(piece, place)

    def _add_one(self, piece: Any, place: int) -> None:
        function = piece.get("function") if isinstance(piece, dict) else None
        if not isinstance(function, dict):
            raise ValueError("a tool call has no object `function`")  # noqa: TRY004
        index = piece.get("index", place)
        if not isinstance(index, int):
            raise ValueError("the index of a tool call is no integer")  # noqa: TRY004
        if index not in self._calls and len(self._calls) >= MAX_CALLS:
            return
        call = self._calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
        call["id"] = call["id"] or str(piece.get("id") or "")
        call["name"] += str(function.get("name") or "")
        arguments = function.get("arguments") or ""
        # Some upstreams send an object in place of its text.
        call["arguments"] += arguments if isinstance(arguments, str) else json.dumps(arguments)

    def list_calls(self) -> tuple[ToolCall, ...]:
        """Return the calls in the order of their index; those without a name are left out."""
        calls = (call for _, call in sorted(self._calls.items()))
        return tuple(
            ToolCall(call["name"], call["arguments"], call["id"]) for call in calls if call["name"]
        )
