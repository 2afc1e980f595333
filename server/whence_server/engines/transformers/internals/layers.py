"""Access to a model's layers: find them, read their outputs, and replace them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.jit._trace import is_tracing

from whence_server.engines.transformers.internals.sources import UnavailableError

ReadOutput = Callable[[], torch.Tensor]
"""Returns a layer's output for the newest token, [rows, width]."""


def find_layers(model: Any) -> torch.nn.ModuleList:
    """Return the blocks that the residual stream passes through, first to last.

    Raises:
        UnavailableError: no module list has the config's number of layers.
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
    """Collect each layer's output for the newest token, [rows, width], within the context."""
    outputs: list[torch.Tensor] = []
    with probe_layers(layers, lambda read: outputs.append(read())):
        yield outputs


@contextmanager
def probe_layers(
    layers: Sequence[torch.nn.Module], callback: Callable[[ReadOutput], None]
) -> Iterator[None]:
    """Call `callback` with each layer's output for the newest token, within the context."""
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
    """Replace the layers' computation by a function of the residual stream, within the context.

    Args:
        layers: the layers to replace.
        instead: function from [rows, tokens, width] to the same shape.
        like: output of one of the layers, for its form: some models need a tuple.
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
    """Return the first layer's output, in the form that the model uses."""
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
    # A view would keep the outputs of all tokens alive. A captured graph has one token.
    return newest if is_tracing() or hidden.shape[1] == 1 else newest.clone()
