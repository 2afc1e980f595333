"""Copies of a model's modules that share its tensors, so that each can have layers of its own."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def copy_modules(model: Any) -> Any:
    """Return a copy of a model whose parameters and buffers are the model's own."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in _list_tensors(model)}
    return copy.deepcopy(model, memo)


def separate_biases(copied: Any) -> None:
    """Give a copy biases of its own, for adapters that change those of their base."""
    for module in copied.modules():
        bias = getattr(module, "bias", None)
        if isinstance(bias, torch.nn.Parameter):
            module.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)


@contextmanager
def watch_writes(model: Any) -> Iterator[list[str]]:
    """Watch a model's tensors within the context.

    Yields:
        A list that has, after the context, the names of the tensors that were written to.
    """
    written: list[str] = []
    named = [*model.named_parameters(), *model.named_buffers()]
    before = [tensor._version for _, tensor in named]  # noqa: SLF001 - no public counter
    yield written
    written += [
        name
        for (name, tensor), version in zip(named, before, strict=True)
        if tensor._version != version  # noqa: SLF001 - as above
    ]


def _list_tensors(model: Any) -> Iterator[torch.Tensor]:
    yield from model.parameters()
    yield from model.buffers()
