"""Definition of what is explained."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Span of tokens whose probability is explained.

    The explained value is the sum of the span's log probabilities, or with `against` the
    difference between that sum and the contrast's.

    Attributes:
        ids: token ids of the prompt and of the output up to the end of the span.
        start: position of the span's first token in `ids`.
        num_prompt: number of the prompt's tokens, the first ones of `ids`.
        against: other tokens in the place of the span, the contrast; empty for none.
    """

    ids: tuple[int, ...]
    start: int
    num_prompt: int
    against: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check the positions.

        Raises:
            ValueError: the span is empty, has nothing before it, or begins in the prompt.
        """
        if not 1 <= self.start < len(self.ids):
            raise ValueError(
                f"the span begins at position {self.start}, expected 1 to {len(self.ids) - 1}"
            )
        if not 0 <= self.num_prompt <= self.start:
            raise ValueError(
                f"the prompt has {self.num_prompt} tokens, expected at most {self.start}, where "
                "the span begins"
            )

    @property
    def span(self) -> tuple[int, ...]:
        """Token ids of the span."""
        return self.ids[self.start :]

    @property
    def context(self) -> tuple[int, ...]:
        """Token ids before the span."""
        return self.ids[: self.start]
