"""Tokens that an upstream names by text, for the page, which names tokens by number."""

from typing import Any

from whence.page.numbers import round_numbers
from whence.v1.step_pb2 import Step


class ToldTokens:
    """Numbers for the texts that steps tell: ids, or negative numbers in place of them.

    Attributes:
        names: texts by number, as keys of JSON.
    """

    def __init__(self) -> None:
        self.names: dict[str, str] = {}
        self._numbers: dict[str, int] = {}

    def describe(self, step: Step) -> dict[str, Any]:
        """Return the numbers of the step's token and candidates, which replace absent ids."""
        shown: dict[str, Any] = {}
        if step.HasField("token_id"):
            self._note(step.token_id, step.token_text)
        elif step.token_text:
            shown["token_id"] = self._find_number(step.token_text)
        table = step.candidates
        for token_id, text in zip(table.token_ids, table.texts):  # noqa: B905 - some may be missing
            self._note(token_id, text)
        if table.texts and not table.token_ids:
            shown["candidates"] = {
                "token_ids": [self._find_number(text) for text in table.texts],
                "logprobs": round_numbers(table.text_logprobs),
                "sampling_logprobs": round_numbers(table.text_sampling_logprobs),
            }
        return shown

    def _note(self, number: int, text: str) -> None:
        if text:
            self.names[str(number)] = text

    def _find_number(self, text: str) -> int:
        number = self._numbers.setdefault(text, -1 - len(self._numbers))
        self._note(number, text)
        return number
