"""TorchScript graphs of what a model's modules compute."""

from collections.abc import Callable
from typing import Any

import torch


def trace(run: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """Return the TorchScript graph of what `run` does with these inputs.

    A module is traced through a function that calls it. If the module itself were traced,
    TorchScript would first build each of its parts anew, which takes longer than the rest of
    loading a model. The graph shares the weights and copies none.
    """

    def call(*given: Any) -> Any:
        return run(*given)

    return torch.jit.trace(call, inputs, check_trace=False)
