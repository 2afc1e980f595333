"""Leaving out large segments first, and small ones within the best: an approximation.

(Liu et al., "AttriBoT: A Bag of Tricks for Efficiently Approximating Leave-One-Out Context
Attribution", 2025, section 3.2.) Small segments outside of the best large ones share the score of
their large one by their tokens. A sample of them is left out too, so that the result says how far
the best small segments are really the best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from whence_server.explain.ablated_values import AblatedValues
from whence_server.explain.ablation_options import read_operator, read_seed
from whence_server.explain.leave_one_out import leave_out_each
from whence_server.explain.scores import Progress, Scores
from whence_server.explain.segments import Segment
from whence_server.explain.target import Target

NUM_BEST = 3
"""Large segments whose small ones are left out."""
NUM_SHOWN = 5
"""Small segments that are compared with the sample."""
NUM_SAMPLED = 8


@dataclass(frozen=True)
class Hierarchy:
    """Approximate scores of small segments.

    Attributes:
        scores: a score for each small segment; its parameters name the agreement.
        is_exact: for each small segment, true if it was left out itself.
        agreement: share of the sampled segments with less effect than each of the `NUM_SHOWN` best
            ones: 1 if the best ones are best; None if there was nothing to sample.
    """

    scores: Scores
    is_exact: tuple[bool, ...]
    agreement: float | None


def leave_out_by_levels(
    model: Any,
    target: Target,
    levels: tuple[Sequence[Segment], Sequence[Segment]],
    options: Mapping[str, object],
    progress: Progress,
) -> Hierarchy:
    """Return approximate scores of small segments.

    Args:
        model: transformers' model, in eval mode.
        target: what is explained.
        levels: large segments, and small ones; each small one is in a large one, or in none.
        options: `operator`, and `seed` of the sample.
        progress: called between the passes; the whole work is known after the first level.

    Raises:
        InvalidRequestError: an option has a value that it cannot have.
        NotOfferedError: the model lacks the operator.
    """
    large, small = levels
    operator = read_operator(options)
    coarse = AblatedValues(model, target, large)
    kept = leave_out_each(len(large))
    total = coarse.count_tokens(kept, operator)
    progress(0, total)
    values = coarse.measure(kept, operator, progress, total)
    effects = values[0] - values[1:]
    groups = _find_groups(large, small)
    inside, sampled = _choose(effects, groups, read_seed(options))
    left_out = np.concatenate([inside, sampled])
    rows = leave_out_each(len(small))[1 + left_out]
    fine = AblatedValues(model, target, small)
    whole = coarse.num_tokens + fine.count_tokens(rows, operator)

    def go_on(done: int, _total: int) -> None:
        progress(coarse.num_tokens + done, whole)

    found = values[0] - fine.measure(rows, operator, go_on, whole)
    scores = _share_out(effects, groups, small)
    scores[left_out] = found
    agreement = _compare(found[: len(inside)], found[len(inside) :])
    parameters = {
        "operator": operator.value,
        "approximate": "true",
        "agreement": "" if agreement is None else f"{agreement:.3f}",
    }
    num_passes = coarse.num_passes + fine.num_passes
    return Hierarchy(
        Scores(tuple(scores.tolist()), float(values[0]), num_passes, parameters=parameters),
        tuple(np.isin(np.arange(len(small)), left_out).tolist()),
        agreement,
    )


def _choose(
    effects: "np.ndarray[Any, Any]", groups: "np.ndarray[Any, Any]", seed: int
) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Return the small segments in the best large ones, and a sample of the others."""
    best = np.argsort(-np.abs(effects))[:NUM_BEST]
    inside = np.flatnonzero(np.isin(groups, best))
    outside = np.setdiff1d(np.arange(len(groups)), inside)
    return inside, np.random.default_rng(seed).permutation(outside)[:NUM_SAMPLED]


def _find_groups(large: Sequence[Segment], small: Sequence[Segment]) -> "np.ndarray[Any, Any]":
    """Return the index of each small segment's large one; -1 for none."""
    groups = np.full(len(small), -1)
    for i, (start, end) in enumerate(large):
        for j, segment in enumerate(small):
            if start <= segment.start and segment.end <= end:
                groups[j] = i
    return groups


def _share_out(
    effects: "np.ndarray[Any, Any]", groups: "np.ndarray[Any, Any]", small: Sequence[Segment]
) -> "np.ndarray[Any, Any]":
    """Return the large segments' effects, shared by their small ones' tokens."""
    sizes = np.array([segment.end - segment.start for segment in small], float)
    scores = np.zeros(len(small))
    for i, effect in enumerate(effects):
        members = groups == i
        scores[members] = effect * sizes[members] / max(sizes[members].sum(), 1.0)
    return scores


def _compare(inside: "np.ndarray[Any, Any]", sampled: "np.ndarray[Any, Any]") -> float | None:
    if not len(inside) or not len(sampled):
        return None
    weakest = np.sort(np.abs(inside))[::-1][:NUM_SHOWN][-1]
    return float((np.abs(sampled) < weakest).mean())
