"""Contexts of a generation's tokens: the prompt, and the earlier tokens of their sequence."""

from collections.abc import Iterable

from whence.v1.step_pb2 import Step


class Context:
    """Token ids of one generation that were read so far, by sequence and position.

    Positions count from the prompt's first token; the generated ones follow.
    """

    def __init__(self, prompt_token_ids: Iterable[int]) -> None:
        self._prompt = tuple(prompt_token_ids)
        self._generated: dict[int, dict[int, int]] = {}

    def add(self, step: Step) -> None:
        """Add a generated step; adding it again has no effect."""
        if step.HasField("token_id"):
            self._generated.setdefault(step.sequence_index, {})[step.index] = step.token_id

    def list_before(self, sequence_index: int, index: int) -> tuple[int, ...]:
        """Return the ids before a sequence's token of this index, up to the first unknown id.

        It is empty if the content policy keeps ids out of the journal.
        """
        generated = self._generated.get(sequence_index, {})
        before = list(self._prompt)
        for earlier in range(index if self._prompt else 0):
            if earlier not in generated:
                break
            before.append(generated[earlier])
        return tuple(before)

    def find_token_id(self, sequence_index: int, position: int) -> int | None:
        """Return the id at a position of a sequence's context; None if it is unknown."""
        if not self._prompt:
            return None  # without the prompt's length no position is known
        if position < len(self._prompt):
            return self._prompt[position]
        return self._generated.get(sequence_index, {}).get(position - len(self._prompt))
