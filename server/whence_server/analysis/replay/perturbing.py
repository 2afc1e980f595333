"""Least change of logits that gives the recorded choice.

A choice depends on logits that carry noise. A recorded token that the replay does not choose is
within the noise if a change of logits by no more than the noise chooses it. The changes that are
tried raise the token, lower the token that won, or shift all less likely tokens: together with
processors that keep the most likely tokens, these are the ways in which noise moves a boundary.
"""

import math
from collections.abc import Callable

import torch

from whence_server.engines.transformers.decoding.choose import Chooser
from whence_server.engines.transformers.decoding.decisions import NoChoice
from whence_server.engines.transformers.decoding.pipeline import Pipeline
from whence_server.engines.transformers.decoding.rows import Row

MOST_NATS = 64.0
"""Change beyond which none is looked for."""
_NUM_HALVINGS = 8


def find_least_change(gives: Callable[..., bool], margin: float) -> float:
    """Return the least change, to about a percent, with which `gives` is true.

    Args:
        gives: whether a change of this many nats gives the recorded choice.
        margin: change that is tried first.

    Returns:
        Nats; infinity if no change up to `MOST_NATS` gives it.
    """
    low, high = 0.0, margin
    while not gives(nats=high):
        if high >= MOST_NATS:
            return math.inf
        low, high = high, min(high * 4, MOST_NATS)
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        if gives(nats=middle):
            high = middle
        else:
            low = middle
    return high


def chooses(
    chooser: Chooser, logits: torch.Tensor, row: Row, *, wanted: int, winner: int, nats: float
) -> bool:
    """Return whether a change of logits chooses a token.

    Args:
        chooser: of the model.
        logits: float32 [V].
        row: state before the step.
        wanted: the token.
        winner: the token that is chosen without a change.
        nats: size of the change.
    """
    changed = logits.repeat(5, 1)
    changed[0, wanted] += nats
    changed[1] += nats * (logits <= logits[wanted])
    changed[2, winner] -= nats
    changed[3] -= nats * (logits <= logits[winner])
    changed[4, wanted] += nats
    changed[4, winner] -= nats
    decisions = chooser.choose(changed, [row] * 5)
    return any(
        not isinstance(decision, NoChoice) and decision.token_id == wanted for decision in decisions
    )


def keeps(
    pipeline: Pipeline, logits: torch.Tensor, row: Row, *, stage: int, wanted: int, nats: float
) -> bool:
    """Return whether a change of logits lets a processor keep a number of tokens, or pass it.

    Args:
        pipeline: of the model.
        logits: float32 [V].
        row: detailed state before the step.
        stage: index of the processor.
        wanted: number of kept tokens on record.
        nats: size of the change.
    """
    distributions = pipeline.run(logits[None], [row])
    places = [0, *distributions.after_stages[0]]
    before = distributions.logprobs[places[stage]].clone()
    after = distributions.logprobs[places[stage + 1]].clone()
    num_kept = int(after.isfinite().sum())
    if num_kept == wanted:
        return True
    kept = after.isfinite()
    if wanted < num_kept:
        # Of the tokens that are kept, the ones that would have to go: the least likely, or those
        # at both ends.
        by_order = before.masked_fill(~kept, torch.inf).argsort()
        outside = ~kept
        outside[by_order[: num_kept - wanted]] = True
    else:
        outside = ~kept
    middle = before[kept].mean()
    less, more = outside & (before <= middle), outside & (before > middle)
    sign = 1.0 if wanted > num_kept else -1.0
    for on_less, on_more in ((1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        changed = logits + sign * nats * (on_less * less + on_more * more)
        again = pipeline.run(changed[None], [row])
        found = int(again.logprobs[again.after_stages[0][stage]].isfinite().sum())
        if (found >= wanted) if wanted > num_kept else (found <= wanted):
            return True
    return False


def passes(
    pipeline: Pipeline, logits: torch.Tensor, row: Row, token_id: int, nats: float, *, kept: bool
) -> bool:
    """Return whether a change of a token's logit lets all processors keep it, or removes it.

    Args:
        pipeline: of the model.
        logits: float32 [V].
        row: state before the step.
        token_id: the token.
        nats: size of the change.
        kept: True if it is kept on record.
    """
    changed = logits.repeat(2, 1)
    changed[0, token_id] += nats
    changed[1, token_id] -= nats
    found = pipeline.run(changed, [row, row]).final_logprobs[:, token_id].isfinite()
    return bool((found == kept).any())
