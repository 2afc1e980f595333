"""Random ablations and a sparse linear model of what they change.

(Cohen-Wang, Shah, Georgiev, Madry, "ContextCite: Attributing Model Generation to Context", NeurIPS
2024, sections 3 and 4.) Half of the segments are taken out at random, many times, and the logit of
the span's probability is taken each time; with a contrast, the difference of log probabilities. A
segment's score is its weight in a LASSO regression. Unlike leaving out one at a time, this sees
segments that stand in for each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from whence_server.explain.ablated_values import AblatedValues, Values
from whence_server.explain.ablation_options import read_num_ablations, read_operator, read_seed
from whence_server.explain.masks import draw_halves
from whence_server.explain.scores import Progress, Scores
from whence_server.explain.segments import Segment
from whence_server.explain.span_values import convert_to_logits
from whence_server.explain.surrogate import ALPHA, fit_surrogate
from whence_server.explain.target import Target

METHOD_VERSION = 1


def ablate_halves(
    model: Any,
    target: Target,
    segments: Sequence[Segment],
    options: Mapping[str, object],
    progress: Progress,
) -> Scores:
    """Return the weight of each segment in a model of what random ablations change.

    The weights are in the unit of the logit of the span's probability; with a contrast, in nats.

    Args:
        model: transformers' model, in eval mode.
        target: what is explained.
        segments: segments of its context, checked; at least one.
        options: `operator`, `num_ablations`, `seed`.
        progress: called between the passes.

    Raises:
        InvalidRequestError: an option has a value that it cannot have.
        NotOfferedError: the model lacks the operator.
    """
    operator, seed = read_operator(options), read_seed(options)
    halves = draw_halves(len(segments), read_num_ablations(options), seed)
    kept = np.vstack([np.ones((1, len(segments)), bool), halves])
    reader = AblatedValues(model, target, segments)
    total = reader.count_tokens(kept, operator)
    progress(0, total)
    values = reader.measure(kept, operator, progress, total)
    surrogate = fit_surrogate(halves, get_scale(target, values[1:]), len(target.span))
    return Scores(
        tuple(surrogate.weights.tolist()),
        float(values[0]),
        reader.num_passes,
        parameters={
            "operator": operator.value,
            "num_ablations": str(len(halves)),
            "seed": str(seed),
            "alpha": str(ALPHA),
        },
        fitted_rows=halves,
    )


def get_scale(target: Target, values: Values) -> Values:
    """Return explained values as a linear model fits them: logits of probabilities, if they are."""
    return values if target.against else convert_to_logits(values)
