"""Margins of one verification, and the tally of its differences."""

import math
from dataclasses import dataclass

from whence_server.domain.decoding import Decoding


@dataclass(frozen=True, slots=True)
class Margins:
    """Differences that are within the noise, in nats.

    Attributes:
        logprob: of a logprob of the model's own distribution, and of a change of logits.
        root_mean_square: of all differences of a generation together.
        scale: factor by which processors can enlarge a difference of logits.
        explainable: difference that another environment's arithmetic may explain; at most
            `logprob` in the same environment.
    """

    logprob: float
    root_mean_square: float
    scale: float
    explainable: float = 0.0

    @property
    def sampling_logprob(self) -> float:
        """Margin of a logprob after the processors, and of a draw's margin."""
        return 2 * self.logprob * self.scale

    def get_entropy_margin(self, entropy: float) -> float:
        """Return the margin of an entropy: the sum over tokens of p |log p| times the noise."""
        return self.logprob * (2.0 + 2.0 * entropy) * self.scale


def compute_scale(decoding: Decoding) -> float:
    """Return the factor by which temperature and penalty can enlarge a difference of logits."""
    penalty = decoding.repetition_penalty
    return max(1.0, 1.0 / decoding.temperature) * max(penalty, 1.0 / penalty)


@dataclass(slots=True)
class Tally:
    """Sum of the differences of logprobs."""

    largest: float = 0.0
    squares: float = 0.0
    num_logprobs: int = 0

    def add(self, difference: float) -> None:
        """Add an absolute difference."""
        self.largest = max(self.largest, difference)
        self.squares += difference * difference
        self.num_logprobs += 1

    @property
    def root_mean_square(self) -> float:
        """Root of the mean square; 0 without a difference."""
        return math.sqrt(self.squares / self.num_logprobs) if self.num_logprobs else 0.0
