"""Leaving out one segment at a time: each score is what the explained value loses without it.

Exact. It sees no segment that another one can stand in for: if a fact is told twice, leaving out
either of the two changes nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whence_server.explain.ablated_values import AblatedValues
from whence_server.explain.ablation_options import read_operator
from whence_server.explain.ablation_rows import Kept
from whence_server.explain.scores import Progress, Scores
from whence_server.explain.segments import Segment
from whence_server.explain.target import Target

METHOD_VERSION = 1


def leave_one_out(
    model: Any,
    target: Target,
    segments: Sequence[Segment],
    options: Mapping[str, object],
    progress: Progress,
) -> Scores:
    """Return the explained value minus that without each segment.

    Args:
        model: transformers' model, in eval mode.
        target: what is explained.
        segments: segments of its context, checked; at least one.
        options: `operator`.
        progress: called between the passes.

    Raises:
        InvalidRequestError: an option has a value that it cannot have.
        NotOfferedError: the model lacks the operator.
    """
    operator = read_operator(options)
    # The rows themselves take memory and time that grow with the square of their number.
    progress(0, count_least(target, segments))
    reader = AblatedValues(model, target, segments)
    kept = leave_out_each(len(segments))
    total = reader.count_tokens(kept, operator)
    progress(0, total)
    values = reader.measure(kept, operator, progress, total)
    return Scores(
        tuple((values[0] - values[1:]).tolist()),
        float(values[0]),
        reader.num_passes,
        parameters={"operator": operator.value},
    )


def count_least(target: Target, segments: Sequence[Segment]) -> int:
    """Return a number of tokens that are read at least: those after each segment."""
    return sum(target.start - segment.end for segment in segments)


def leave_out_each(num_segments: int) -> Kept:
    """Return a row with all segments, and rows without each: [1 + segments, segments]."""
    return np.vstack([np.ones((1, num_segments), bool), ~np.eye(num_segments, dtype=bool)])
