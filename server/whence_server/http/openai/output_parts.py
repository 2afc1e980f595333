"""Parts of a sequence for the API's answers: reasoning, content and tool calls.

The record has the output whole, with the ranges of the parts that were read from it.
"""

from collections.abc import Sequence
from typing import Any

from whence.v1.generation_pb2 import ChatRecord, GenerationFinished, SequenceResult
from whence.v1.step_pb2 import Step
from whence_server.http.openai.reasoning import Divided, make_divider
from whence_server.http.openai.tool_calls import HeldText
from whence_server.text.tokenizer import TextTokenizer


class SequenceParts:
    """Parts of one sequence while it streams; joined, they are those of its result.

    Args:
        chat: the conversation's forms of output; the empty message for a prompt without one.
        tokenizer: names special tokens, which may be marks; None for an upstream whose tokenizer is
            not known, which has no form.

    Attributes:
        num_steps: number of steps so far.
        num_pieces: number of those that may be several tokens: text of an upstream that names none.
        num_reasoning_steps: number of those that are reasoning.
    """

    def __init__(self, chat: ChatRecord, tokenizer: TextTokenizer | None) -> None:
        self._divider = make_divider(chat.reasoning_format, begins_inside=chat.begins_in_reasoning)
        self._held = HeldText(chat.tool_call_format, tokenizer)
        self._tokenizer = tokenizer
        self._special: list[str] = []
        """Special tokens since the last text: at the end of an output they are no part of it."""
        self._num_characters = 0
        """Length of the reasoning so far."""
        self.num_steps = self.num_pieces = self.num_reasoning_steps = 0

    def push(self, step: Step) -> Divided:
        """Add a step; return the text that can be sent."""
        self.num_steps += 1
        self.num_pieces += not (step.HasField("token_id") or step.HasField("logprob"))
        was_inside = self._divider is not None and self._divider.is_inside
        told, content = self._divide(step)
        reasoning = step.reasoning_text + told
        self._num_characters += len(reasoning)
        is_inside = self._divider is not None and self._divider.is_inside
        self.num_reasoning_steps += bool(reasoning) or was_inside or is_inside
        if is_inside:
            # A mark of tool calls within reasoning is none.
            return Divided(reasoning, "")
        return Divided(reasoning, self._held.push(step, content))

    def finish(self, result: SequenceResult) -> Divided:
        """Return the rest of the parts."""
        content = get_content(result)[self._held.num_released :]
        return Divided(result.reasoning.text[self._num_characters :], content)

    def _divide(self, step: Step) -> Divided:
        if self._divider is None:
            return Divided("", step.text)
        pieces = []
        if step.text:
            pieces = [self._divider.push_special(name) for name in self._special]
            pieces.append(self._divider.push(step.text))
            self._special = []
        tokenizer = self._tokenizer
        if tokenizer and step.HasField("token_id") and tokenizer.is_special(step.token_id):
            self._special.append(tokenizer.get_token_text(step.token_id))
        return Divided(
            "".join(piece.reasoning for piece in pieces), "".join(piece.content for piece in pieces)
        )


def count_reasoning_tokens(
    parts: Sequence[SequenceParts], finished: GenerationFinished
) -> int | None:
    """Return the number of generated tokens that are reasoning; None if nobody told it."""
    num_reasoning = sum(it.num_reasoning_steps for it in parts)
    is_exact = not any(it.num_pieces for it in parts)
    # As many steps as tokens: each piece is one.
    is_exact = is_exact or sum(it.num_steps for it in parts) == finished.num_generated_tokens
    return num_reasoning if is_exact or not num_reasoning else None


def get_content(result: SequenceResult) -> str:
    """Return a sequence's text without its reasoning and without its tool calls."""
    reasoning = (result.reasoning.text_begin_byte, result.reasoning.text_end_byte)
    ranges = {(call.text_begin_byte, call.text_end_byte) for call in result.tool_calls}
    encoded = result.text.encode()
    parts, begin = [], 0
    for part_begin, part_end in sorted({reasoning, *ranges}):
        parts.append(encoded[begin:part_begin])
        begin = max(begin, part_end)
    content = b"".join([*parts, encoded[begin:]]).decode()
    return content.lstrip() if reasoning[0] < reasoning[1] else content


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
