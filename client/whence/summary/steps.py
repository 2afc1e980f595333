"""Summary of one step: the token, the reason for it, and what else was likely."""

from collections.abc import Sequence
from math import exp, floor
from typing import Final

from whence.summary.names import TokenNames, name_told_tokens
from whence.summary.numbers import (
    HUNDREDTHS,
    LEAST_IN_TENTHS,
    TENTHS,
    count,
    format_probability,
)
from whence.v1.step_pb2 import Step

PROMPT: Final = "prompt"
"""Strategy of a prompt's token, which the model read and did not choose."""
FORCED: Final = "forced"
"""Strategy of a token that was given, in a forced continuation or at the begin of a branch."""

_LEAST_TAKEN: Final = 0.0005
"""Probability that a constraint took below which the line does not mention it."""
CONSTRAINT: Final = "constraint"
"""Processor of a request's constraint, which is always the first."""

_RANKS: Final = (
    ", the likeliest",
    *(f", {count(rank, 'token')} likelier" for rank in range(1, 512)),
)
_CHOICES: Final = {
    "greedy": ", taken greedily",
    "beam_search": ", kept by beam search",
    FORCED: ", given",
    PROMPT: ", read in the prompt",
}
"""Words for strategies without a draw, by their names in Decoding.strategy."""


def summarise_step(
    step: Step, names: TokenNames, strategy: str = "", *, constrained: bool = False
) -> str:
    """Return a step in one line of words and numbers; see `describe_choice`.

    Args:
        step: the step.
        names: the tokens' names.
        strategy: the name of Decoding.strategy, or `PROMPT`.
        constrained: True if the first processor is the request's constraint.
    """
    draw = step.draw
    token_id = step.token_id if step.HasField("token_id") else None
    candidates: Sequence[int] = step.candidates.token_ids
    logprobs: Sequence[float] = step.candidates.logprobs
    if step.token_text or step.candidates.texts:
        names, token_id, candidates, logprobs = name_told_tokens(step, names)
    return describe_choice(
        names,
        strategy,
        token_id,
        step.logprob if step.HasField("logprob") else None,
        step.sampling_logprob if step.HasField("sampling_logprob") else None,
        step.rank if step.HasField("rank") else None,
        step.processors.num_kept,
        candidates,
        logprobs,
        draw.margin if draw.HasField("margin") else None,
        draw.runner_up_token_id if draw.HasField("runner_up_token_id") else None,
        drawn=step.HasField("draw"),
        removed_mass=step.processors.removed_mass if constrained else (),
    )


def describe_choice(  # noqa: PLR0917 - called for every step: keywords would take time
    names: TokenNames,
    strategy: str,
    token_id: int | None,
    logprob: float | None,
    sampling_logprob: float | None,
    rank: int | None,
    num_kept: Sequence[int],
    candidate_ids: Sequence[int],
    candidate_logprobs: Sequence[float],
    margin: float | None,
    runner_up_id: int | None,
    *,
    drawn: bool,
    removed_mass: Sequence[float] = (),
) -> str:
    """Return the choice of a token in one line, from a step's fields; None stands for absent ones.

    A sampled token: '" special" 0.3% (drawn at 0.15%), 22 tokens likelier, 32 kept; " the" 49.7%,
    " a" 11.5%, " its" 2.9%; won by 0.49 nats over " the"'. Without ids the numbers stand alone.
    `removed_mass` is that of the processors if the first of them is a constraint, else empty: the
    line then says ', constraint took 93.0%' or ', forced by the constraint'.

    The span exporter calls this function with fields that it has read already: it is called for
    every step, and reading them again takes as long as the rest.
    """
    name = "" if token_id is None else names(token_id)
    at = choice = likelier = kept = others = won = ""
    if logprob is None:
        return f"{name}, the prompt's first token" if name and strategy == PROMPT else name
    # Most probabilities are formatted here, because a call takes as long as the look-up.
    least = LEAST_IN_TENTHS
    if sampling_logprob is not None and sampling_logprob != logprob:
        after = (
            TENTHS[floor(1_000 * exp(sampling_logprob) + 0.5)]
            if least <= sampling_logprob <= 0
            else format_probability(sampling_logprob)
        )
        at = f" (drawn at {after})" if drawn else f" ({after} after processors)"
    if not drawn:
        choice = _CHOICES.get(strategy, "")
    if rank is not None:
        likelier = _RANKS[rank] if rank < len(_RANKS) else f", {rank:,} tokens likelier"
    if num_kept:
        kept = f", {num_kept[-1]:,} kept"
        if removed_mass:
            kept = f"{_describe_constraint(num_kept[0], removed_mass[0])}{kept}"
    if candidate_logprobs:
        others = _list_runners_up(names, token_id, rank, candidate_ids, candidate_logprobs)
    if margin is not None:
        nats = HUNDREDTHS[floor(100 * margin + 0.5)] if 0 <= margin < 10 else f"{margin:.2f}"
        over = "" if not name or runner_up_id is None else f" over {names(runner_up_id)}"
        nats = "less than 0.01" if 0 < margin < 0.005 else nats
        won = f"; won by {nats} nats{over}"
    space = " " if name else ""
    probability = (
        TENTHS[floor(1_000 * exp(logprob) + 0.5)]
        if least <= logprob <= 0
        else format_probability(logprob)
    )
    # One string at the end, because each addition to a string copies it.
    return f"{name}{space}{probability}{at}{choice}{likelier}{kept}{others}{won}"


def _describe_constraint(num_kept: int, removed_mass: float) -> str:
    if num_kept == 1:
        return ", forced by the constraint"
    return f", constraint took {removed_mass:.1%}" if removed_mass >= _LEAST_TAKEN else ""


def _list_runners_up(
    names: TokenNames,
    token_id: int | None,
    rank: int | None,
    ids: Sequence[int],
    logprobs: Sequence[float],
) -> str:
    """Return the likeliest other tokens; without ids, the token's rank tells which it is."""
    if token_id is None or not ids:
        others = [format_probability(p) for i, p in enumerate(logprobs[:4]) if i != rank]
        return "; " + ", ".join(others[:3]) if others else ""
    if len(ids) > 3 and len(logprobs) > 3:
        # The usual case without a loop and without calls, which takes half the time.
        a, b, c, d = ids[:4]
        p, q, r, s = logprobs[:4]
        if a == token_id:
            a, b, c, p, q, r = b, c, d, q, r, s
        elif b == token_id:
            b, c, q, r = c, d, r, s
        elif c == token_id:
            c, r = d, s
        least = LEAST_IN_TENTHS
        if least <= p <= 0 and least <= q <= 0 and least <= r <= 0:
            return (
                f"; {names(a)} {TENTHS[floor(1_000 * exp(p) + 0.5)]}"
                f", {names(b)} {TENTHS[floor(1_000 * exp(q) + 0.5)]}"
                f", {names(c)} {TENTHS[floor(1_000 * exp(r) + 0.5)]}"
            )
    others = [
        f"{names(other)} {format_probability(p)}"
        for other, p in zip(ids[:4], logprobs)  # noqa: B905 - as long as the shorter
        if other != token_id
    ]
    return "; " + ", ".join(others[:3]) if others else ""
