"""Number of steps at which noise may have chosen another token, so that nobody steers within it.

A margin is an extreme value: noise changes a choice only where the two best tokens are closer than
the noise of a typical step. How often that is so follows from the replay's own distances.
"""

import math
from dataclasses import dataclass

PROBABILITY = 1e-6
"""Probability with which an honest generation has more other tokens than the limit."""
_MOST_OF_SETS = 1e-3
"""Share of steps at which a processor's boundary, moved by noise, changes the choice."""
_LEAST = 2


@dataclass(slots=True)
class Choices:
    """Count of the steps at which the record has another token, and of those expected.

    Attributes:
        noise: typical noise of a logit, in nats, with a factor of safety.
        num_other: steps with another token within the margin.
        nats: sum of the changes of logits that give these tokens.
        expected: number of such steps that noise gives.
    """

    noise: float
    num_other: int = 0
    nats: float = 0.0
    expected: float = 0.0

    def add_step(self, distance: float | None) -> None:
        """Add a step.

        Args:
            distance: nats between the chosen token and the next; None if there is no other.
        """
        if distance is None or self.noise <= 0:
            return
        self.expected += math.erfc(max(distance, 0.0) / (2 * self.noise))
        self.expected += min(_MOST_OF_SETS, 4 * self.noise)

    def add_other(self, nats: float) -> None:
        """Add another token that a change of logits within the margin gives."""
        self.num_other += 1
        self.nats += nats

    @property
    def limit(self) -> int:
        """Largest number of other tokens that noise explains."""
        term = total = math.exp(-self.expected)
        number = 0
        # Beyond some hundred the first term is 0: the normal distribution takes its place.
        if self.expected > 500:
            return math.ceil(self.expected + 5 * math.sqrt(self.expected))
        while 1 - total > PROBABILITY:
            number += 1
            term *= self.expected / number
            total += term
            if not term:
                break
        return max(number, _LEAST)

    def find_fault(self) -> str:
        """Return what is wrong with the number of other tokens; "" if nothing is."""
        if self.num_other <= self.limit:
            return ""
        return (
            f"at {self.num_other} steps the record has another token within the margin, by "
            f"{self.nats:.3g} nats together; the arithmetic's noise gives at most {self.limit}"
        )
