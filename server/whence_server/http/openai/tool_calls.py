"""Tool calls of an output, held back while its text streams."""

from collections.abc import Sequence

from whence.v1.step_pb2 import Step
from whence_server.http.openai.reasoning import count_mark_beginning
from whence_server.text.output_formats import CALL_FORMATS_BY_NAME, CallFormat
from whence_server.text.tokenizer import TextTokenizer


class HeldText:
    """Text of one sequence while it streams: held back from where a tool call may begin.

    A call is read when its sequence has ended. Until then nobody knows whether what looks like one
    is well-formed.

    Args:
        call_format: name of the format of tool calls; "" for none, which holds nothing back.
        tokenizer: gives the bytes of tokens, as marks may be special tokens without text; None for
            an upstream whose tokenizer is not known, which has no format.

    Attributes:
        num_released: number of characters that can be sent so far.
    """

    def __init__(self, call_format: str, tokenizer: TextTokenizer | None) -> None:
        self._format = CALL_FORMATS_BY_NAME.get(call_format)
        self._marks = _list_marks(self._format)
        self._vocabulary = [] if tokenizer is None else tokenizer.list_vocabulary()
        self._text = ""
        self._is_holding = False
        self.num_released = 0

    def push(self, step: Step, text: str) -> str:
        """Add a step with its text outside of reasoning; return the text that can be sent."""
        if self._format is None:
            self.num_released += len(text)
            return text
        before = len(self._text)
        self._text += text
        if self._is_holding:
            return ""
        end = self._find_end(step, before)
        released, self.num_released = self._text[self.num_released : end], end
        return released

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
        found = [at for mark in texts if (at := self._text.find(mark, self.num_released)) >= 0]
        if found:
            self._is_holding = True
            return min(found)
        return len(self._text) - max(count_mark_beginning(self._text, mark) for mark in texts)


def _list_marks(call_format: CallFormat | None) -> Sequence[bytes]:
    if call_format is None:
        return ()
    marks = (call_format.begin, call_format.group_begin, call_format.prefix)
    return [mark.encode() for mark in marks if mark] if call_format.begin else []
