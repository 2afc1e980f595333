"""Probabilities of many steps: their mean, the least likely tokens, and how many were unlikely."""

import math
from bisect import insort
from collections.abc import Iterable
from math import exp
from typing import NamedTuple

from whence.summary.names import TokenNames
from whence.summary.numbers import count, format_probability, shorten_float32
from whence.v1.step_pb2 import Step

DEFAULT_UNLIKELY_BELOW = 0.01
"""Probability below which a token counts as unlikely, unless a setting says otherwise."""

_LISTED = 3


class UnlikelyToken(NamedTuple):
    """Token with its logprob and place; the least likely sorts first, then the earliest."""

    logprob: float
    sequence_index: int
    step_index: int
    token_id: int
    """Id of the token; -1 where the content policy keeps ids out of the journal."""


class Likelihood:
    """Probabilities of one sequence's steps under the model, added in order.

    They are added in float64 in the order of the steps, so that the same steps give the same sum.

    Args:
        unlikely_below: probability below which a token is unlikely.
    """

    __slots__ = ("_bar", "_limit", "_sum", "least", "num_known", "num_steps", "num_unlikely")

    def __init__(self, unlikely_below: float = DEFAULT_UNLIKELY_BELOW) -> None:
        self.num_steps = 0
        self.num_known = 0
        """Number of steps with a logprob."""
        self.num_unlikely = 0
        self.least: list[UnlikelyToken] = []
        """At most three tokens, the least likely first."""
        self._sum = 0.0
        self._bar = math.inf
        self._limit = compute_unlikely_limit(unlikely_below)

    @property
    def sum_of_probabilities(self) -> float:
        """Sum over the steps with a logprob."""
        return self._sum

    def add(self, step: Step) -> None:
        """Add the next step."""
        self.add_logprob(step, step.logprob)

    def add_logprob(self, step: Step, logprob: float) -> None:
        """Add the next step, whose logprob was read already: this is called for every step."""
        self.num_steps += 1
        if not logprob and not step.HasField("logprob"):
            return
        self.num_known += 1
        self._sum += exp(logprob) if logprob < 1 else 1.0
        if logprob < self._limit:
            self.num_unlikely += 1
        if logprob < self._bar:
            self._insert(step, logprob)

    def _insert(self, step: Step, logprob: float) -> None:
        token_id = step.token_id if step.HasField("token_id") else -1
        insort(self.least, UnlikelyToken(logprob, step.sequence_index, step.index, token_id))
        del self.least[_LISTED:]
        if len(self.least) == _LISTED:
            self._bar = self.least[-1].logprob


class Likelihoods:
    """Probabilities of all steps of a block, a sequence or a generation.

    Args:
        parts: the sequences' own, by ascending index.
    """

    def __init__(self, parts: Iterable[Likelihood]) -> None:
        listed = list(parts)
        self.num_steps = sum(part.num_steps for part in listed)
        self.num_unlikely = sum(part.num_unlikely for part in listed)
        self._num_known = sum(part.num_known for part in listed)
        self._sum = math.fsum(part.sum_of_probabilities for part in listed)
        self._least = sorted(token for part in listed for token in part.least)[:_LISTED]

    @property
    def least_likely(self) -> UnlikelyToken | None:
        """The least likely token; None if no step has a logprob."""
        return self._least[0] if self._least else None

    @property
    def least_probability(self) -> float | None:
        """Probability of the least likely token, in the digits of a float32."""
        least = self.least_likely
        return None if least is None else shorten_float32(exp(min(least.logprob, 0.0)))

    def summarise(self, names: TokenNames) -> str:
        """Return one line: number of tokens, mean and least probability, and where it is least.

        '9 tokens, mean probability 22.4%, least 0.3%; least likely: " special" 0.3% at 0/3'. The
        place is sequence/index, as in the command's tables.

        Args:
            names: the tokens' names.
        """
        line = count(self.num_steps, "token") if self.num_steps else "no tokens"
        if not self._num_known:
            return line
        mean = format_probability(math.log(self._sum / self._num_known) if self._sum else -math.inf)
        line += f", mean probability {mean}, least {format_probability(self._least[0].logprob)}"
        listed = ", ".join(_describe(token, names) for token in self._least)
        return f"{line}; least likely: {listed}"


def compute_unlikely_limit(unlikely_below: float) -> float:
    """Return the logprob below which a token is unlikely; 0 as the probability is never."""
    return math.log(unlikely_below) if unlikely_below else -math.inf


def _describe(token: UnlikelyToken, names: TokenNames) -> str:
    name = f"{names(token.token_id)} " if token.token_id >= 0 else ""
    place = f"{token.sequence_index}/{token.step_index}"
    return f"{name}{format_probability(token.logprob)} at {place}"
