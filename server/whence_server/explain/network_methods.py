"""Methods that read gradients or take the network apart, in the form of the table of methods."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec

from whence_server.domain.errors import FieldViolation, InvalidRequestError, NotOfferedError
from whence_server.engines.transformers.internals.sources import UnavailableError
from whence_server.explain.decomposition import Decomposition, decompose
from whence_server.explain.flow import FlowOptions, trace_flow
from whence_server.explain.gradients import PathOptions, integrate_gradients, multiply_gradient
from whence_server.explain.patching import Corruption, NothingLostError, patch
from whence_server.explain.reading import compute_value, plan_passes
from whence_server.explain.scores import (
    MAX_TOKENS_READ,
    Progress,
    RecoveredShares,
    Scores,
    Terms,
)
from whence_server.explain.target import Target

MAX_PATCHED_POSITIONS = 48
"""Positions that one patching restores, at most."""
DEFAULT_MAX_GAP = 0.05

_Parameters = ParamSpec("_Parameters")
_Segments = Sequence[tuple[int, int]]


def _translate(method: Callable[_Parameters, Scores]) -> Callable[_Parameters, Scores]:
    """Return the method with its errors as those of a request."""

    def run(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Scores:
        try:
            return method(*args, **kwargs)
        except UnavailableError as reason:
            raise NotOfferedError(
                f"the model's architecture does not give {method.__name__.replace('_', ' ')}: "
                f"{reason}; leave-one-out, ablation, gradient and integrated-gradients work with "
                "every architecture"
            ) from reason
        except NothingLostError as error:
            raise InvalidRequestError(
                FieldViolation("options.corrupted_segment", str(error))
            ) from error

    return run


@_translate
def gradient(
    model: Any,
    target: Target,
    segments: _Segments,
    options: Mapping[str, object],
    progress: Progress,
) -> Scores:
    """Return gradient x input, summed over each segment's tokens."""
    del options
    read = _count_tokens(target)
    found = multiply_gradient(model, target, _scale(progress, read))
    values = _sum_segments(found.scores, segments)
    return Scores(
        values,
        found.value,
        len(plan_passes(target)),
        parameters={"outside_segments": _format(sum(found.scores) - sum(values))},
    )


@_translate
def integrated_gradients(
    model: Any,
    target: Target,
    segments: _Segments,
    options: Mapping[str, object],
    progress: Progress,
) -> Scores:
    """Return integrated gradients, summed over each segment's tokens.

    Raises:
        InvalidRequestError: `max_gap` is not above 0 and up to 1.
    """
    path = PathOptions(max_gap=_read_max_gap(options))
    found = integrate_gradients(model, target, path, _scale(progress, _count_tokens(target)))
    values = _sum_segments(found.scores, segments)
    return Scores(
        values,
        found.value,
        found.num_steps * len(plan_passes(target)),
        gap=found.gap,
        parameters={
            "baseline": path.baseline,
            "baseline_value": _format(found.baseline_value),
            "path": "straight",
            "num_steps": str(found.num_steps),
            "max_gap": _format(path.max_gap),
            "outside_segments": _format(sum(found.scores) - sum(values)),
        },
    )


@_translate
def flow(
    model: Any,
    target: Target,
    segments: _Segments,
    options: Mapping[str, object],
    progress: Progress,
) -> Scores:
    """Return the share of each segment in the flow of information."""
    del options
    chosen = FlowOptions()
    # A sweep computes each layer of its pass once more.
    read = 2 * _count_tokens(target)
    found = trace_flow(model, target, chosen, _scale(progress, read, _count_layers(model)))
    values = _sum_segments(found.scores, segments)
    return Scores(
        values,
        compute_value(model, target),
        found.num_sweeps,
        parameters={
            "num_hops": str(chosen.num_hops),
            "pairs_per_head": str(chosen.pairs_per_head),
            "left_out": _format(found.left_out),
            "span_share": _format(found.span_share),
            "outside_segments": _format(sum(found.scores) - sum(values)),
        },
    )


@_translate
def decomposition(
    model: Any,
    target: Target,
    segments: _Segments,
    options: Mapping[str, object],
    progress: Progress,
) -> Scores:
    """Return the terms of the span's logits; it has no scores of segments."""
    del segments, options
    found = decompose(model, target, _scale(progress, _count_tokens(target)))
    return Scores(
        (),
        compute_value(model, target),
        len(plan_passes(target)),
        gap=found.residual,
        parameters={"logit": _format(found.value), "norms": "frozen"},
        terms=make_terms(found),
    )


@_translate
def patching(
    model: Any,
    target: Target,
    segments: _Segments,
    options: Mapping[str, object],
    progress: Progress,
) -> Scores:
    """Return the recovered share of each restored activation; it has no scores of segments.

    Raises:
        InvalidRequestError: `corrupted_segment` is out of range, or its corruption lowers nothing.
    """
    begin, end = _choose_corrupted(segments, options)
    seed = options.get("seed")
    corruption = Corruption(begin, end, num_noises=1, seed=seed if isinstance(seed, int) else 0)
    num_tokens, num_layers = _count_tokens(target), _count_layers(model)
    # A run starts after the restored layer: it is half a pass in the middle.
    most = 2 * MAX_TOKENS_READ // (num_tokens * num_layers)
    positions = _choose_positions(target, segments, begin, max(1, min(MAX_PATCHED_POSITIONS, most)))
    told = _scale(progress, len(positions) * num_tokens, 2)
    found = patch(model, target, corruption, positions, told)
    return Scores(
        (),
        found.value,
        found.num_passes,
        parameters={
            "corrupted_positions": f"{begin}:{end}",
            "num_noises": str(corruption.num_noises),
            "seed": str(corruption.seed),
            "noise": "3 standard deviations of the embeddings",
        },
        recovered=RecoveredShares(
            tuple(found.positions), tuple(map(tuple, found.shares)), found.corrupted_value
        ),
    )


def make_terms(found: Decomposition) -> Terms:
    """Return the terms in the form of a result."""
    return Terms(
        found.embedding,
        tuple(map(tuple, found.heads)),
        tuple(found.attention_rests),
        tuple(found.mlps),
        found.norm_bias,
        found.head_bias,
        found.residual,
    )


def _choose_corrupted(segments: _Segments, options: Mapping[str, object]) -> tuple[int, int]:
    index = options.get("corrupted_segment")
    if not segments:
        raise InvalidRequestError(
            FieldViolation("segmentation", "has no segment; patching corrupts one or all")
        )
    if index is None:
        return min(begin for begin, _ in segments), max(end for _, end in segments)
    if not isinstance(index, int) or not 0 <= index < len(segments):
        raise InvalidRequestError(
            FieldViolation(
                "options.corrupted_segment",
                f"is {index!r}; it must be a number from 0 to {len(segments) - 1}",
            )
        )
    begin, end = segments[index]
    return begin, end


def _choose_positions(
    target: Target, segments: _Segments, begin: int, most: int = MAX_PATCHED_POSITIONS
) -> list[int]:
    """Return the positions to restore: nothing before the corrupted part is lost.

    If there are too many, each segment's last position stands for it, where a causal model has
    read all of it, and the last positions of the context are added.
    """
    positions = list(range(begin, target.start))
    if len(positions) <= most:
        return positions
    ends = [end - 1 for _, end in segments if begin < end <= target.start]
    step = max(1, -(-len(ends) // max(1, most // 2)))
    chosen = set(ends[::-1][::step])
    chosen |= set(positions[len(positions) - (most - len(chosen)) :])
    return sorted(chosen)


def _read_max_gap(options: Mapping[str, object]) -> float:
    max_gap = options.get("max_gap")
    if max_gap is None:
        return DEFAULT_MAX_GAP
    if not isinstance(max_gap, int | float) or not 0 < max_gap <= 1:
        raise InvalidRequestError(
            FieldViolation("options.max_gap", f"is {max_gap!r}; it must be above 0, and at most 1")
        )
    return float(max_gap)


def _count_tokens(target: Target) -> int:
    return sum(len(one.ids) for one in plan_passes(target))


def _count_layers(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).num_hidden_layers)


def _scale(progress: Progress, num_tokens: int, num_parts: int = 1) -> Progress:
    """Return a progress that is told of passes, or parts of them, and tells of tokens."""

    def tell(done: int, total: int) -> None:
        progress(done * num_tokens // num_parts, total * num_tokens // num_parts)

    return tell


def _sum_segments(scores: Sequence[float], segments: _Segments) -> tuple[float, ...]:
    return tuple(sum(scores[begin:end]) for begin, end in segments)


def _format(value: float) -> str:
    return f"{value:.6g}"
