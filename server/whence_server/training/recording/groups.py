"""Partition of a model's parameters into the groups that the record measures.

A layer is a member of one of the outermost `ModuleList`s. Its modules that mix positions
(attention, or a recurrent or convolutional mixer) are "attention"; its modules that process each
position by itself are "mlp". The first half of a layer's own norms is "attention", the rest "mlp".
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from whence_server.training.recording.adapters import find_adapted

FROZEN = "frozen"
"""Name of the group of parameters that the training of an adapter does not change."""

_MIXES = re.compile(r"attn|attention|mixer|mamba|ssm|recurrent|temporal|conv|retention")
_WORKS_ALONE = re.compile(r"mlp|ffn|feed_forward|ff$|moe|expert|fc\d*$|dense|router|gate")


class Group(NamedTuple):
    """Group of parameters; see `ParameterGroup` in training.proto."""

    name: str
    num_parameters: int
    parameter_names: list[str]


def group_parameters(model: nn.Module) -> list[Group]:
    """Assign each of the model's parameters to one group; return them from embedding to head.

    A head that is tied to the embedding belongs to the embedding. In the training of an adapter all
    frozen parameters are one group.
    """
    parts = _ModelParts(model)
    is_adapter = find_adapted(model) is not None
    members: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        is_frozen = is_adapter and not parameter.requires_grad
        group = FROZEN if is_frozen else parts.find_group(name, parameter)
        members.setdefault(group, []).append((name, parameter))
    return [
        Group(name, sum(p.numel() for _, p in members[name]), [n for n, _ in members[name]])
        for name in sorted(members, key=_get_order)
    ]


def _get_order(group: str) -> tuple[int, int, str]:
    first, _, rest = group.partition(".")
    place = ["embedding", "layer", "final_norm", "head", "other", FROZEN].index(first)
    number, _, half = rest.partition(".")
    return place, int(number or 0), half


class _ModelParts:
    """Embeddings, layers and head of a model, found by its module structure."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._layers = {name: f"layer.{n}" for n, name in enumerate(_find_layers(self._modules))}
        self._inputs = _find_weights(model, "get_input_embeddings")
        self._outputs = _find_weights(model, "get_output_embeddings")

    def find_group(self, name: str, parameter: nn.Parameter) -> str:
        """Return the name of a parameter's group."""
        path = name.split(".")
        for end in range(len(path) - 1, 0, -1):
            layer = ".".join(path[:end])
            if layer in self._layers:
                half = self._find_half(layer, path[end])
                return f"{self._layers[layer]}.{half}" if half else "other"
        if id(parameter) in self._inputs:
            return "embedding"
        if id(parameter) in self._outputs:
            return "head"
        return self._find_group_outside_layers(name)

    def _find_group_outside_layers(self, name: str) -> str:
        owner = self._modules[name.rpartition(".")[0]]
        if isinstance(owner, nn.Embedding) or "embed" in name.lower():
            return "embedding"
        return "final_norm" if _is_norm(owner) else "other"

    def _find_half(self, layer: str, child: str) -> str:
        """Return the half of a layer that a child belongs to: "attention", "mlp" or ""."""
        module = self._modules.get(f"{layer}.{child}")
        if module is not None and _is_norm(module):
            norms = [name for name, m in self._modules[layer].named_children() if _is_norm(m)]
            return "attention" if norms.index(child) < (len(norms) + 1) // 2 else "mlp"
        for text in (child.lower(), type(module).__name__.lower()):
            # "dense" and "gate" are parts of attention too, but not where a layer holds them.
            if _MIXES.search(text):
                return "attention"
            if _WORKS_ALONE.search(text):
                return "mlp"
        return ""


def _find_layers(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Yield the names of the members of outermost module lists, in order."""
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    for name in lists:
        if not any(name.startswith(f"{other}.") for other in lists):
            yield from (f"{name}.{child}" for child, _ in modules[name].named_children())


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _find_weights(model: Any, getter: str) -> set[int]:
    """Return the ids (`id()`) of the parameters of a model's input or output embeddings."""
    try:
        module = getattr(model, getter)()
    except Exception:  # noqa: BLE001 - a model of any kind, whose method may be another one
        return set()
    if isinstance(module, nn.Parameter):
        return {id(module)}
    return set(map(id, module.parameters())) if isinstance(module, nn.Module) else set()
