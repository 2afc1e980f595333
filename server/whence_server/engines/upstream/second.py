"""The distribution that an upstream draws from, computed from its table of raw logprobs.

It is computed where the table holds every token that the processors keep. Temperature, top-k, top-p
and min-p have the meaning of transformers' logits processors of these names. Sums are in float64.
A limit that a token misses or passes by less than the rounding of float32 decides nothing: the
result is then absent.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from whence_server.domain.decoding import Decoding, Strategy

_NEAR = 1e-5
"""Relative distance from a limit within which float32 logprobs decide nothing."""
_ORDERED = frozenset({"temperature", "top_k", "top_p", "min_p"})


class Entry(NamedTuple):
    """A token of the table while it is processed."""

    place: int
    """Place in the table."""
    weight: float
    """Probability up to a common factor."""


@dataclass(frozen=True, slots=True)
class SecondComputer:
    """Computer of a generation's processed logprobs.

    Attributes:
        decoding: settings as applied.
        order: order in which the upstream applies them.
    """

    decoding: Decoding
    order: tuple[str, ...]

    @property
    def is_neutral(self) -> bool:
        """True if no processor applies, so that the one distribution is the other."""
        return not self.order

    @property
    def num_wanted(self) -> int:
        """Candidates that the table needs, so that it can hold every token that is kept."""
        return self.decoding.top_k + 1 if self.decoding.top_k else 0

    def compute(self, logprobs: Sequence[float]) -> list[float] | None:
        """Return the processed logprobs of a table's tokens, most likely first.

        A token that a processor removes has -inf. None if the table does not hold every token that
        is kept.
        """
        if self.is_neutral:
            return list(logprobs)
        if not logprobs or any(a < b for a, b in itertools.pairwise(logprobs)):
            return None
        state: _State | None = _State([Entry(i, math.exp(p)) for i, p in enumerate(logprobs)])
        for name in self.order:
            if state is not None:
                state = _APPLY[name](state, self.decoding)
        return None if state is None else state.finish(len(logprobs))


@dataclass(frozen=True, slots=True)
class _State:
    """Tokens that are left.

    Attributes:
        kept: tokens that are left, most likely first.
        is_whole: True if no token beyond the table is left.
        is_raw: True if the weights are probabilities of the whole distribution.
    """

    kept: list[Entry]
    is_whole: bool = False
    is_raw: bool = True

    def sum_weights(self) -> float | None:
        """Return the sum of the weights of all tokens that are left; None if it is not known."""
        if self.is_whole:
            return math.fsum(entry.weight for entry in self.kept)
        return 1.0 if self.is_raw else None

    def keep(self, num_kept: int) -> "_State":
        """Return the state with the first tokens alone."""
        return _State(self.kept[:num_kept], is_whole=True, is_raw=False)

    def leave_open(self) -> "_State":
        """Return the state after a processor that removes only tokens beyond the table, if any."""
        return _State(self.kept, is_whole=False, is_raw=False)

    def finish(self, num_candidates: int) -> list[float] | None:
        """Return the logprob of each token of the table."""
        total = self.sum_weights()
        if total is None:
            return None
        result = [-math.inf] * num_candidates
        for place, weight in self.kept:
            result[place] = math.log(weight / total) if weight > 0 else -math.inf
        return result


def find_computer(
    decoding: Decoding, order: tuple[str, ...], *, has_passed_on: bool
) -> SecondComputer | None:
    """Return the computer for a generation's settings; None if the result can never be known.

    Args:
        decoding: settings as applied.
        order: order in which the upstream applies them; () if that is not known.
        has_passed_on: True if the request has fields that whence does not know.
    """
    if has_passed_on or _has_other_processors(decoding):
        return None
    if decoding.strategy is Strategy.GREEDY or _is_neutral(decoding):
        return SecondComputer(decoding, ())
    if decoding.strategy is not Strategy.SAMPLE or set(order) != _ORDERED:
        return None
    reaches = decoding.top_k or decoding.min_p or (decoding.top_p < 1 and decoding.temperature == 1)
    return SecondComputer(decoding, order) if reaches else None


def _is_neutral(decoding: Decoding) -> bool:
    values = (decoding.temperature, decoding.top_k, decoding.top_p, decoding.min_p)
    return decoding.strategy is Strategy.SAMPLE and values == (1, 0, 1, 0)


def _has_other_processors(decoding: Decoding) -> bool:
    neutral = Decoding(decoding.strategy, decoding.max_new_tokens)
    names = (
        *("min_new_tokens", "repetition_penalty", "no_repeat_ngram_size", "logit_bias"),
        *("bad_words", "bad_word_ids", "constraint", "ignore_eos"),
        *("typical_p", "epsilon_cutoff", "eta_cutoff"),
    )
    return any(getattr(decoding, name) != getattr(neutral, name) for name in names)


def _apply_temperature(state: _State, decoding: Decoding) -> _State:
    if decoding.temperature == 1:
        return state
    most = state.kept[0].weight
    # Relative to the likeliest, so that nothing overflows.
    kept = [
        Entry(place, (weight / most) ** (1 / decoding.temperature)) for place, weight in state.kept
    ]
    return _State(kept, state.is_whole, is_raw=False)


def _apply_top_k(state: _State, decoding: Decoding) -> _State | None:
    k = decoding.top_k
    if not k or (state.is_whole and k >= len(state.kept)):
        return state
    if k >= len(state.kept):
        return state.leave_open()
    # Equal scores are all kept, or not all, as the upstream likes.
    if _is_near(state.kept[k - 1].weight, state.kept[k].weight):
        return None
    return state.keep(k)


def _apply_top_p(state: _State, decoding: Decoding) -> _State | None:
    if decoding.top_p >= 1:
        return state
    total = state.sum_weights()
    if total is None:
        return None
    before = 0.0
    for count, entry in enumerate(state.kept, 1):
        after = before + entry.weight / total
        if abs(after - decoding.top_p) < _NEAR:
            return None
        if after > decoding.top_p:
            at_end = count == len(state.kept)
            if not at_end and _is_near(entry.weight, state.kept[count].weight):
                return None
            return None if at_end and not state.is_whole else state.keep(count)
        before = after
    return state if state.is_whole else state.leave_open()


def _apply_min_p(state: _State, decoding: Decoding) -> _State | None:
    if not decoding.min_p:
        return state
    least = decoding.min_p * state.kept[0].weight
    if any(_is_near(entry.weight, least) for entry in state.kept):
        return None
    num_kept = sum(entry.weight > least for entry in state.kept)
    if num_kept == len(state.kept) and not state.is_whole:
        return state.leave_open()
    return state.keep(num_kept)


def _is_near(a: float, b: float) -> bool:
    return abs(a - b) <= _NEAR * max(a, b)


_APPLY = {
    "temperature": _apply_temperature,
    "top_k": _apply_top_k,
    "top_p": _apply_top_p,
    "min_p": _apply_min_p,
}
