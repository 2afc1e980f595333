"""A model's layers: found, listened to, and left out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.jit._trace import is_tracing

from whence_server.engine.internals.sources import UnavailableError

ReadOutput = Callable[[], torch.Tensor]
"""Takes a layer's output for the newest token, [rows, width]."""


def find_layers(model: Any) -> torch.nn.ModuleList:
    """The blocks that the residual stream goes through, first to last.

    Raises:
        UnavailableError: there is no list of as many modules as the config says.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise UnavailableError(f"it has no list of {count} layers")
    return min(lists, key=lambda entry: entry[0])[1]


@contextmanager
def collect_layer_outputs(layers: Sequence[torch.nn.Module]) -> Iterator[list[torch.Tensor]]:
    """Collect what each layer gives for the newest token, [rows, width], in the passes within."""
    outputs: list[torch.Tensor] = []
    with probe_layers(layers, lambda read: outputs.append(read())):
        yield outputs


@contextmanager
def probe_layers(
    layers: Sequence[torch.nn.Module], callback: Callable[[ReadOutput], None]
) -> Iterator[None]:
    """Let `callback` look at each layer's output for the newest token in the passes within."""
    handles = [
        layer.register_forward_hook(
            lambda _module, _args, output: callback(lambda: _take_newest(output))
        )
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replace_layers(
    layers: Sequence[torch.nn.Module], instead: Callable[[torch.Tensor], torch.Tensor], like: Any
) -> Iterator[None]:
    """Let `instead` answer for the layers: it takes and gives the residual stream.

    Args:
        layers: those that do not compute within.
        instead: [rows, tokens, width] to the same.
        like: what one of the layers gave: some models want a tuple.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = instead(args[0] if args else kwargs["hidden_states"])
        return (hidden, *[None] * (len(like) - 1)) if isinstance(like, tuple) else hidden

    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def run_first_layer(model: Any, layers: Sequence[torch.nn.Module]) -> Any:
    """What the first layer gives, in the form that the model wants it."""
    seen: list[Any] = []
    handle = layers[0].register_forward_hook(lambda _module, _args, output: seen.append(output))
    try:
        model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=model.device))
    finally:
        handle.remove()
    return seen[0]


def _take_newest(output: Any) -> torch.Tensor:
    hidden = output[0] if isinstance(output, tuple) else output
    newest: torch.Tensor = hidden[:, -1]
    # A view would keep all of a prompt's tokens alive. What is captured as a graph is one token.
    return newest if is_tracing() or hidden.shape[1] == 1 else newest.clone()
