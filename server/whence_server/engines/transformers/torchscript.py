"""Tracing of a model's modules as TorchScript graphs."""

from collections.abc import Callable
from typing import Any

import torch


def trace(run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """Return the TorchScript graph of `run` on these inputs.

    A module is traced through a function that calls it. If the module itself were traced,
    TorchScript would first rebuild each of its submodules, which takes longer than the rest of
    loading a model. The graph shares the weights and copies none.
    """

    def call(*given: Any) -> Any:
        return run(*given)

    return torch.jit.trace(call, inputs, check_trace=False)
