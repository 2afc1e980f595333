"""Comparison of the numbers of a step: each within a margin of its own, and none left out."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from whence_server.analysis.replay.margins import Margins
from whence_server.domain.decoding import Decoding, Strategy, TraceDetail
from whence_server.domain.processors import list_processor_names
from whence_server.domain.steps import Candidates, Decision


class Difference(NamedTuple):
    """A number that is not as the replay gives it.

    Attributes:
        nats: size; infinite if the number is missing, or no change of logits gives it.
        message: description for people.
    """

    nats: float
    message: str


class Promise(NamedTuple):
    """Numbers that each step of a record has.

    Attributes:
        detail: detail of the trace; None if nothing is promised.
        num_candidates: candidates of each step.
        num_requested: tokens whose logprobs were requested.
        applies_processors: True if a processor is among the settings.
        strategy: strategy of the choice.
    """

    detail: TraceDetail | None
    num_candidates: int
    num_requested: int
    applies_processors: bool
    strategy: Strategy

    def count_candidates(self, decision: Decision) -> int:
        """Return the number of candidates that a step's table has, or should have; 0 for none."""
        if decision.candidates is None:
            return 0
        promised = 0 if self.detail is None else self.num_candidates
        return max(promised, len(decision.candidates.token_ids))

    def find_missing(self, decision: Decision, *, is_given: bool = False) -> str:
        """Return the names of the numbers that a step lacks; "" if it has them all.

        Args:
            decision: decision of the step.
            is_given: True if its token was given and not chosen.
        """
        if self.detail is None:
            return ""
        draws = not is_given
        wanted = {"logprob": True, "sampling_logprob": draws}
        if self.detail is not TraceDetail.TOKENS:
            wanted |= {
                "rank": True,
                "entropy": True,
                "sampling_entropy": draws,
                "candidates": self.num_candidates > 0,
                "effects": self.applies_processors and draws,
                "draw": self.strategy is Strategy.SAMPLE and draws,
                "requested_logprobs": self.num_requested > 0,
            }
        lacks = (name for name, is_wanted in wanted.items() if is_wanted)
        return ", ".join(name for name in lacks if getattr(decision, name) is None)


def make_promise(
    decoding: Decoding, detail: TraceDetail | None, num_candidates: int, num_requested: int
) -> Promise:
    """Return what each step of a record has."""
    applies = bool(list_processor_names(decoding))
    return Promise(detail, num_candidates, num_requested, applies, decoding.strategy)


def measure(recorded: float, found: float) -> float:
    """Return the distance of two numbers; 0 if they are equal infinities, infinite for a NaN."""
    if recorded == found:
        return 0.0
    distance = abs(recorded - found)
    return distance if math.isfinite(distance) else math.inf


def compare_number(
    name: str, recorded: float | None, found: float | None, margin: float
) -> Iterator[Difference]:
    """Yield the difference of a number, if it is on record and beyond its margin."""
    if recorded is None:
        return
    if found is None:
        yield Difference(math.inf, f"{name}: {recorded:.6f} on record, and it has none here")
        return
    distance = measure(recorded, found)
    if not distance <= margin:
        yield Difference(distance, f"{name}: {recorded:.6f} on record, {found:.6f} here")


def compare_lists(
    name: str, recorded: Sequence[float], found: Sequence[float], margin: float
) -> Iterator[Difference]:
    """Yield the first difference of two lists of numbers."""
    if len(recorded) != len(found):
        yield Difference(math.inf, f"{name}: {len(recorded)} on record, {len(found)} here")
        return
    for theirs, ours in zip(recorded, found, strict=True):
        for difference in compare_number(name, theirs, ours, margin):
            yield difference
            return


def compare_candidates(
    candidates: Candidates,
    own: Sequence[float],
    most_likely: Sequence[float],
    promise: Promise,
    margins: Margins,
) -> Iterator[Difference]:
    """Yield what is wrong with a table's tokens: their number, and each one's place.

    Two tokens that are as likely, within the noise, may have each other's place.

    Args:
        candidates: the table on record.
        own: logprobs of its tokens in the replay.
        most_likely: largest logprobs of the replay, as many as the table has or is promised to
            have, if the vocabulary has so many tokens.
        promise: numbers that each step has.
        margins: allowed differences.
    """
    ids = candidates.token_ids
    most = min(promise.num_candidates, len(most_likely))
    if promise.detail is not None and len(ids) != most:
        yield Difference(math.inf, f"{len(ids)} candidates on record, {most} here")
        return
    if len(set(ids)) != len(ids):
        yield Difference(math.inf, "a candidate is on record twice")
        return
    for place, (token_id, logprob, largest) in enumerate(zip(ids, own, most_likely, strict=False)):
        distance = measure(logprob, largest)
        if not distance <= 2 * margins.logprob:
            what = f"token {token_id} is candidate {place} on record, and less likely here"
            yield Difference(distance, what)
            return


def compare_rank(
    recorded: int | None, found: int | None, token_id: int, logits: torch.Tensor, margins: Margins
) -> Iterator[Difference]:
    """Yield the difference of ranks: tokens as likely, within the noise, may have its place."""
    if recorded is None or found is None or recorded == found:
        return
    what = f"rank: {recorded} on record, {found} here"
    if not 0 <= recorded < len(logits):
        yield Difference(math.inf, what)
        return
    distances = (logits - logits[token_id]).abs()
    num_close = int((distances <= 2 * margins.logprob).sum())
    if abs(recorded - found) >= num_close:
        there = float(logits.sort(descending=True).values[recorded])
        yield Difference(measure(there, float(logits[token_id])) / 2, what)


def compare_effects(
    recorded: Decision, found: Decision, names: Sequence[str], margins: Margins
) -> Iterator[Difference]:
    """Yield the differences of what processors do to the chosen token, which is the same."""
    theirs, ours = recorded.effects, found.effects
    if theirs is None or ours is None:
        return
    margin = margins.sampling_logprob
    yield from compare_lists(
        f"logprob after a processor ({', '.join(names)})",
        theirs.token_logprobs,
        ours.token_logprobs,
        margin,
    )
    yield from compare_lists("removed mass", theirs.removed_mass, ours.removed_mass, 2 * margin)
