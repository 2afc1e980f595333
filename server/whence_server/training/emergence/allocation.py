"""Which parameters a change of a text's probability came from: loss change allocation.

Lan, Liu, Zhou and Yosinski, "LCA: Loss Change Allocation for Neural Network Training" (2019),
section 2, equations 1 to 3, for the straight line between two checkpoints:

    f(end) - f(start) = integral over t from 0 to 1 of  gradient f(start + t delta) . delta

The inner product falls into one summand for each parameter, and so for each group of them. What
the training did on its own way between the two is not in it: the line is what their weights tell.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from whence_server.training.emergence.quadrature import Vector, integrate

RELATIVE_TOLERANCE = 1e-3
"""Of the estimated errors' sum, against the sum of the groups' magnitudes."""
ABSOLUTE_TOLERANCE_NATS = 1e-4
MAX_GRADIENTS = 129
"""For one interval; the gap says what it cost."""


class Allocation(NamedTuple):
    """How a change is allocated."""

    changes: list[float]
    """Of each group, in nats."""
    num_gradients: int


def token_logprobs(model: Any, prompt: Sequence[int], continuation: Sequence[int]) -> torch.Tensor:
    """Log p of each token of the continuation, given all before it: shape (C,), in nats.

    The softmax is taken in the weights' dtype.
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
        model: gives the architecture; its parameters hold anything afterwards.
        start: parameters by name.
        end: the same, later.
        groups: names of parameters, each in one group at most.
        text: token ids of prompt and continuation.
    """
    parameters = dict(model.named_parameters())
    deltas = {name: end[name] - start[name] for name in parameters}
    group_of = {name: number for number, names in enumerate(groups) for name in names}

    def gradient_along_the_line(t: float) -> Vector:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(start[name]).add_(deltas[name], alpha=t)
        model.zero_grad(set_to_none=True)
        token_logprobs(model, *text).sum().backward()
        contributions = np.zeros(len(groups))
        for name, parameter in parameters.items():
            if name in group_of and parameter.grad is not None:
                product = torch.sum(parameter.grad * deltas[name], dtype=torch.float64)
                contributions[group_of[name]] += float(product)
        return contributions

    integral = integrate(
        gradient_along_the_line,
        relative_tolerance=RELATIVE_TOLERANCE,
        absolute_tolerance=ABSOLUTE_TOLERANCE_NATS,
        max_points=MAX_GRADIENTS,
    )
    model.zero_grad(set_to_none=True)
    return Allocation(integral.value.tolist(), integral.num_points)
