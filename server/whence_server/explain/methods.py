"""Table of the methods that explain; a test holds it to `domain.explanations.METHOD_OPTIONS`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

from whence_server.domain.explanations import ExplainMethod
from whence_server.explain import ablation, leave_one_out, network_methods
from whence_server.explain.scores import Progress, Scores
from whence_server.explain.segments import Segment
from whence_server.explain.target import Target

Run: TypeAlias = Callable[[Any, Target, Sequence[Segment], Mapping[str, object], Progress], Scores]
"""Computes scores of a model's context; raises NotOfferedError if the architecture lacks a part."""


class Method(NamedTuple):
    """A method, and the version of its implementation."""

    version: int
    run: Run


_NETWORK_VERSION = 1
METHODS: Final[Mapping[ExplainMethod, Method]] = {
    ExplainMethod.LEAVE_ONE_OUT: Method(leave_one_out.METHOD_VERSION, leave_one_out.leave_one_out),
    ExplainMethod.ABLATION: Method(ablation.METHOD_VERSION, ablation.ablate_halves),
    ExplainMethod.GRADIENT: Method(_NETWORK_VERSION, network_methods.gradient),
    ExplainMethod.INTEGRATED_GRADIENTS: Method(
        _NETWORK_VERSION, network_methods.integrated_gradients
    ),
    ExplainMethod.FLOW: Method(_NETWORK_VERSION, network_methods.flow),
    ExplainMethod.DECOMPOSITION: Method(_NETWORK_VERSION, network_methods.decomposition),
    ExplainMethod.PATCHING: Method(_NETWORK_VERSION, network_methods.patching),
}
"""Methods, in the order in which errors name them."""
