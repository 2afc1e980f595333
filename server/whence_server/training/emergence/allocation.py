"""Loss change allocation: contribution of each parameter group to a change of a logprob.

Lan, Liu, Zhou and Yosinski, "LCA: Loss Change Allocation for Neural Network Training" (2019),
section 2, equations 1 to 3, for the straight line between two checkpoints:

    f(end) - f(start) = integral over t from 0 to 1 of  gradient f(start + t delta) . delta

The inner product is a sum over parameters, and so over groups of them. The path that the training
took between the two checkpoints is not known, so that the line stands for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from whence_server.training.emergence.quadrature import Vector, integrate

RELATIVE_TOLERANCE = 1e-3
"""Bound of the estimated error, relative to the sum of the groups' magnitudes."""
ABSOLUTE_TOLERANCE_NATS = 1e-4
MAX_GRADIENTS = 129
"""Largest number of gradients for one interval; `EmergenceInterval.gap` shows the error."""


class Allocation(NamedTuple):
    """Contribution of each group to a change."""

    changes: list[float]
    """Change for each group, in nats."""
    num_gradients: int


def compute_token_logprobs(
    model: Any, prompt: Sequence[int], continuation: Sequence[int]
) -> torch.Tensor:
    """Return log p of each token of the continuation given all before it: shape (C,), in nats.

    The softmax is computed in the weights' dtype.
    """
    ids = torch.tensor([[*prompt, *continuation]])
    logits = model(input_ids=ids[:, :-1]).logits[0, len(prompt) - 1 :]  # (C, V)
    logprobs = torch.log_softmax(logits, dim=-1)
    return logprobs.gather(-1, ids[0, len(prompt) :, None])[:, 0]


def allocate(
    model: Any,
    start: Mapping[str, torch.Tensor],
    end: Mapping[str, torch.Tensor],
    groups: Sequence[Sequence[str]],
    text: tuple[Sequence[int], Sequence[int]],
) -> Allocation:
    """Allocate the change of a continuation's logprob to groups of parameters.

    Args:
        model: model of the architecture; its parameters are overwritten.
        start: parameters at the interval's start, by name.
        end: parameters at its end, by name.
        groups: names of parameters; each is in at most one group.
        text: token ids of prompt and continuation.
    """
    parameters = dict(model.named_parameters())
    deltas = {name: end[name] - start[name] for name in parameters}
    group_of = {name: number for number, names in enumerate(groups) for name in names}

    def compute_gradient(t: float) -> Vector:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name]).add_(deltas[name], alpha=t)
        model.zero_grad(set_to_none=True)
        compute_token_logprobs(model, *text).sum().backward()
        contributions = np.zeros(len(groups))
        for name, parameter in parameters.items():
            if name in group_of and parameter.grad is not None:
                product = torch.sum(parameter.grad * deltas[name], dtype=torch.float64)
                contributions[group_of[name]] += float(product)
        return contributions

    integral = integrate(
        compute_gradient,
        relative_tolerance=RELATIVE_TOLERANCE,
        absolute_tolerance=ABSOLUTE_TOLERANCE_NATS,
        max_points=MAX_GRADIENTS,
    )
    model.zero_grad(set_to_none=True)
    return Allocation(integral.value.tolist(), integral.num_points)
