"""What a generation's tokens could look back at: the prompt, and their own sequence so far."""

from collections.abc import Iterable

from whence.v1.step_pb2 import Step


class Context:
    """The token ids of one generation, by sequence and position, as far as they have been read.

    Positions count from the prompt's first token; the generated ones follow.
    """

    def __init__(self, prompt_token_ids: Iterable[int]) -> None:
        self._prompt = tuple(prompt_token_ids)
        self._generated: dict[int, dict[int, int]] = {}

    def add(self, step: Step) -> None:
        """Take in a generated step; one that is known already changes nothing."""
        if step.HasField("token_id"):
            self._generated.setdefault(step.sequence_index, {})[step.index] = step.token_id

    def before(self, sequence_index: int, index: int) -> tuple[int, ...]:
        """The ids that a sequence's token of this index follows.

        It ends where an id is not known: before the first that was not read, and at once where
        the content policy keeps ids out of the journal.
        """
        generated = self._generated.get(sequence_index, {})
        before = list(self._prompt)
        for earlier in range(index if self._prompt else 0):
            if earlier not in generated:
                break
            before.append(generated[earlier])
        return tuple(before)

    def token_id(self, sequence_index: int, position: int) -> int | None:
        """The id at a position of a sequence's context; None where it is not known."""
        if not self._prompt:
            return None  # what is not known at the beginning leaves no position known
        if position < len(self._prompt):
            return self._prompt[position]
        return self._generated.get(sequence_index, {}).get(position - len(self._prompt))
