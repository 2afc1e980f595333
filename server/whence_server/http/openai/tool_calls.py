"""Tool calls of an output: taken out of its text, and held back while the text streams."""

from collections.abc import Sequence
from typing import Any

from whence.v1.generation_pb2 import SequenceResult
from whence.v1.step_pb2 import Step
from whence_server.text.output_formats import CALL_FORMATS_BY_NAME, CallFormat
from whence_server.text.tokenizer import TextTokenizer


def take_out_calls(result: SequenceResult) -> str:
    """Return a sequence's text without the parts that its tool calls were read from."""
    encoded = result.text.encode()
    parts, begin = [], 0
    ranges = sorted({(call.text_begin_byte, call.text_end_byte) for call in result.tool_calls})
    for call_begin, call_end in ranges:
        parts.append(encoded[begin:call_begin])
        begin = max(begin, call_end)
    return b"".join([*parts, encoded[begin:]]).decode()


def make_calls(result: SequenceResult) -> list[dict[str, Any]]:
    """Return a sequence's tool calls in the API's form."""
    return [
        {
            "id": parsed.call.id,
            "type": "function",
            "function": {
                "name": parsed.call.name,
                "arguments": parsed.call.arguments_json or "{}",
            },
        }
        for parsed in result.tool_calls
    ]


class HeldText:
    """Text of one sequence while it streams: held back from where a tool call may begin.

    A call is read when its sequence has ended. Until then nobody knows whether what looks like one
    is well-formed.

    Args:
        call_format: name of the format of tool calls; "" for none, which holds nothing back.
        tokenizer: gives the bytes of tokens, as marks may be special tokens without text; None for
            an upstream whose tokenizer is not known, which has no format.
    """

    def __init__(self, call_format: str, tokenizer: TextTokenizer | None) -> None:
        self._format = CALL_FORMATS_BY_NAME.get(call_format)
        self._marks = _list_marks(self._format)
        self._vocabulary = [] if tokenizer is None else tokenizer.list_vocabulary()
        self._text = ""
        self._num_released = 0
        self._is_holding = False

    def push(self, step: Step) -> str:
        """Add a step; return the text that can be sent."""
        if self._format is None:
            return step.text
        before = len(self._text)
        self._text += step.text
        if not self._is_holding:
            end = self._find_end(step, before)
            released, self._num_released = self._text[self._num_released : end], end
            return released
        return ""

    def finish(self, result: SequenceResult) -> str:
        """Return the rest of the sequence's text, without its tool calls."""
        if self._format is None:
            return ""
        return take_out_calls(result)[self._num_released :]

    def _find_end(self, step: Step, before: int) -> int:
        """Return the number of characters that are before any call; hold back from there on."""
        if step.HasField("token_id") and self._vocabulary[step.token_id] in self._marks:
            self._is_holding = True
            return before
        if not self._marks:
            # The output as a whole may be calls, each an object.
            begun = self._text.lstrip()
            self._is_holding = begun.startswith("{")
            return 0 if self._is_holding or not begun else len(self._text)
        texts = [mark.decode() for mark in self._marks]
        found = [at for mark in texts if (at := self._text.find(mark, self._num_released)) >= 0]
        if found:
            self._is_holding = True
            return min(found)
        return len(self._text) - max(_count_beginning(self._text, mark) for mark in texts)


def _list_marks(call_format: CallFormat | None) -> Sequence[bytes]:
    if call_format is None:
        return ()
    marks = (call_format.begin, call_format.group_begin, call_format.prefix)
    return [mark.encode() for mark in marks if mark] if call_format.begin else []


def _count_beginning(text: str, mark: str) -> int:
    """Return the length of the longest beginning of a mark with which a text ends."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
