"""Construction of the recorded decisions from a step's distributions and choices."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from whence_server.domain.steps import (
    Candidates,
    Decision,
    Draw,
    ProcessorEffects,
    RequestedLogprobs,
)
from whence_server.engines.transformers.decoding import statistics
from whence_server.engines.transformers.decoding.kernels import Kernels, Race
from whence_server.engines.transformers.decoding.pipeline import Distributions
from whence_server.engines.transformers.decoding.rows import Row


@dataclass(frozen=True, slots=True)
class NoChoice:
    """Reason for a row's having no next token.

    Attributes:
        reason: UPPER_SNAKE_CASE, for programs.
        message: text for people.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class NonFiniteLogits(NoChoice):
    """The model's logits hold NaN or +infinity, or are all -infinity."""

    reason: str = "NON_FINITE_LOGITS"
    message: str = "the model's logits hold NaN or an infinity: they are no distribution"


@dataclass(frozen=True, slots=True)
class NothingLeft(NoChoice):
    """The request's settings remove every token, or make the scores overflow."""

    reason: str = "NO_TOKEN_LEFT"
    message: str = (
        "the decoding settings leave no token that could be chosen; loosen bad_words, "
        "no_repeat_ngram_size or min_new_tokens, or raise a temperature near 0"
    )


class Choice(NamedTuple):
    """The chosen tokens, on the device.

    Attributes:
        token_ids: int64 [B].
        race: outcome of the draws of the sampled rows, in their order.
        sampled: indices of the sampled rows.
    """

    token_ids: torch.Tensor
    race: Race | None
    sampled: list[int]


class _Numbers(NamedTuple):
    """A step's numbers on the host; numbers that no row asked for are empty."""

    token_ids: list[int]
    token_logprobs: list[float]
    """Logprob of the chosen token under each row of `Distributions.logprobs`."""
    num_kept: list[int]
    """Number of tokens that each row of `Distributions.logprobs` leaves."""
    entropies: list[float]
    """Entropy of each row of `Distributions.logprobs` that is the model's own or drawn from."""
    ranks: list[int]
    candidate_ids: list[list[int]]
    candidate_logprobs: list[list[float]]
    candidate_sampling_logprobs: list[list[float]]
    requested_logprobs: list[list[float]]
    requested_sampling_logprobs: list[list[float]]
    noises: list[float]
    runner_up_ids: list[int]
    margins: list[float]


class DecisionBuilder:
    """Builder of decisions, which computes their numbers for the whole batch at once."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def build_decisions(
        self, distributions: Distributions, rows: Sequence[Row], choice: Choice
    ) -> list[Decision | NoChoice]:
        """Return each row's decision, or the reason for having none."""
        tensors = self._measure(distributions, rows, choice)
        numbers = _Numbers(*(tensor.tolist() for tensor in statistics.copy_to_host(tensors)))
        draws = {i: place for place, i in enumerate(choice.sampled)}
        return [
            _make_decision(numbers, i, row, distributions, draws.get(i))
            for i, row in enumerate(rows)
        ]

    def _measure(
        self, distributions: Distributions, rows: Sequence[Row], choice: Choice
    ) -> list[torch.Tensor]:
        """Compute the tensors of `_Numbers`, in its order."""
        token_ids, logprobs = choice.token_ids, distributions.logprobs
        owned = token_ids
        if len(distributions.owners) > len(rows):
            owned = token_ids[torch.tensor(distributions.owners, device=token_ids.device)]
        measured = [token_ids, statistics.gather_logprobs(logprobs, owned)]
        nothing = token_ids.new_empty(0)

        if any(row.detailed for row in rows):
            measured += self._measure_details(distributions, rows, token_ids)
        else:
            measured += [nothing] * 8
        if choice.race is None:
            return [*measured, nothing, nothing, nothing]
        _, noises, runner_up_ids, margins = choice.race
        return [*measured, noises, runner_up_ids, margins]

    def _measure_details(
        self, distributions: Distributions, rows: Sequence[Row], token_ids: torch.Tensor
    ) -> list[torch.Tensor]:
        """Return the number of fields from `num_kept` to `requested_sampling_logprobs`."""
        scores, finals = distributions.scores, distributions.final_logprobs
        own = distributions.logprobs[: len(rows)]
        nothing = token_ids.new_empty(0)
        needs_entropy = [True] * len(rows) + [False] * (len(distributions.owners) - len(rows))
        for final in distributions.finals:
            needs_entropy[final] = True
        num_candidates = max(row.num_candidates for row in rows)
        ranks, ids, num_kept, entropies = self._kernels.explain(
            scores, token_ids, num_candidates, distributions.logprobs, needs_entropy
        )
        candidates = [ids, nothing, nothing]
        if num_candidates:
            candidates = [ids, own.gather(-1, ids), finals.gather(-1, ids)]
        requested = [nothing, nothing]
        if any(row.logprob_token_ids for row in rows):
            ids = statistics.pad_ids([row.logprob_token_ids for row in rows], own.device)
            requested = [own.gather(-1, ids), finals.gather(-1, ids)]
        return [num_kept, entropies, ranks, *candidates, *requested]


def _make_decision(
    numbers: _Numbers, i: int, row: Row, distributions: Distributions, draw: int | None
) -> Decision | NoChoice:
    token_id, logprob = numbers.token_ids[i], numbers.token_logprobs[i]
    sampling_logprob = numbers.token_logprobs[distributions.finals[i]]
    if math.isnan(logprob):
        return NonFiniteLogits()
    forced = row.is_forced
    if not forced and math.isnan(sampling_logprob):
        if row.constraint is not None:
            return NothingLeft(message=row.constraint.explain_nothing_left())
        return NothingLeft()
    if not row.detailed:
        return Decision(token_id, logprob, None if forced else sampling_logprob)
    after_stages = [] if forced else distributions.after_stages[i]
    return Decision(
        token_id=token_id,
        logprob=logprob,
        sampling_logprob=None if forced else sampling_logprob,
        rank=numbers.ranks[i],
        entropy=numbers.entropies[i],
        sampling_entropy=None if forced else numbers.entropies[distributions.finals[i]],
        candidates=_make_candidates(numbers, i, row.num_candidates, forced=forced),
        effects=_make_effects(numbers, i, after_stages) if after_stages else None,
        draw=None if draw is None else _make_draw(numbers, draw),
        requested_logprobs=_make_requested(numbers, i, len(row.logprob_token_ids), forced=forced)
        if row.logprob_token_ids
        else None,
    )


def _make_candidates(
    numbers: _Numbers, i: int, num_candidates: int, *, forced: bool
) -> Candidates | None:
    if num_candidates == 0:
        return None
    return Candidates(
        token_ids=numbers.candidate_ids[i][:num_candidates],
        logprobs=numbers.candidate_logprobs[i][:num_candidates],
        sampling_logprobs=(
            [] if forced else numbers.candidate_sampling_logprobs[i][:num_candidates]
        ),
    )


def _make_requested(
    numbers: _Numbers, i: int, num_requested: int, *, forced: bool
) -> RequestedLogprobs:
    sampling = [] if forced else numbers.requested_sampling_logprobs[i][:num_requested]
    return RequestedLogprobs(numbers.requested_logprobs[i][:num_requested], sampling)


def _make_effects(numbers: _Numbers, i: int, after_stages: list[int]) -> ProcessorEffects:
    """Return the effects of each stage.

    A stage that removes tokens does not change the scores of the others. Renormalising then
    multiplies their probabilities by one factor, so that the chosen token's gives the removed mass.
    """
    removed_mass = []
    before = i
    for after in after_stages:
        mass = 0.0
        if numbers.num_kept[after] != numbers.num_kept[before]:
            mass = _compute_removed_mass(
                numbers.token_logprobs[before], numbers.token_logprobs[after]
            )
        removed_mass.append(mass)
        before = after
    return ProcessorEffects(
        num_kept=[numbers.num_kept[after] for after in after_stages],
        removed_mass=removed_mass,
        token_logprobs=[numbers.token_logprobs[after] for after in after_stages],
    )


def _compute_removed_mass(before: float, after: float) -> float:
    """Return the mass that a stage removed, from one token's logprobs before and after it.

    Removing tokens cannot make another one less likely, but rounding can, by any amount if the
    logprobs are huge; the mass is then 0.
    """
    if not before < after:
        return 0.0
    return -math.expm1(before - after)


def _make_draw(numbers: _Numbers, draw: int) -> Draw:
    runner_up_id = numbers.runner_up_ids[draw]
    if runner_up_id < 0:
        return Draw(numbers.noises[draw], None, None)
    return Draw(numbers.noises[draw], runner_up_id, numbers.margins[draw])
