"""Parts a model's parameters into the groups that the record measures, for any architecture.

A layer is a member of one of the outermost `ModuleList`s. Within it, what mixes positions
(attention, or a recurrent or convolutional mixer in its place) is "attention", what works on each
position by itself is "mlp". A layer's own norms belong to the half that they are part of, which
is told by their order.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from whence_server.training.recording.adapters import adapted

FROZEN = "frozen"
"""The group of all that an adapter's training leaves as it is."""

_MIXES = re.compile(r"attn|attention|mixer|mamba|ssm|recurrent|temporal|conv|retention")
_WORKS_ALONE = re.compile(r"mlp|ffn|feed_forward|ff$|moe|expert|fc\d*$|dense|router|gate")


class Group(NamedTuple):
    """Parameters that are measured together; see `ParameterGroup` in training.proto."""

    name: str
    num_parameters: int
    parameter_names: list[str]


def parameter_groups(model: nn.Module) -> list[Group]:
    """Each of the model's parameters in exactly one group: from the embedding to the head.

    A head that is tied to the embedding belongs to the embedding. Where an adapter is trained, the
    groups are of its parameters, and what is frozen is a group of its own.
    """
    parts = _Parts(model)
    is_adapter = adapted(model) is not None
    members: dict[str, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        is_frozen = is_adapter and not parameter.requires_grad
        group = FROZEN if is_frozen else parts.group_of(name, parameter)
        members.setdefault(group, []).append((name, parameter))
    return [
        Group(name, sum(p.numel() for _, p in members[name]), [n for n, _ in members[name]])
        for name in sorted(members, key=_order)
    ]


def _order(group: str) -> tuple[int, int, str]:
    first, _, rest = group.partition(".")
    place = ["embedding", "layer", "final_norm", "head", "other", FROZEN].index(first)
    number, _, half = rest.partition(".")
    return place, int(number or 0), half


class _Parts:
    """What a model is made of, as far as it can be told from its modules."""

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._layers = {name: f"layer.{n}" for n, name in enumerate(_layers(self._modules))}
        self._inputs = _weights_of(model, "get_input_embeddings")
        self._outputs = _weights_of(model, "get_output_embeddings")

    def group_of(self, name: str, parameter: nn.Parameter) -> str:
        """The group of a parameter."""
        path = name.split(".")
        for end in range(len(path) - 1, 0, -1):
            layer = ".".join(path[:end])
            if layer in self._layers:
                half = self._half(layer, path[end])
                return f"{self._layers[layer]}.{half}" if half else "other"
        if id(parameter) in self._inputs:
            return "embedding"
        if id(parameter) in self._outputs:
            return "head"
        return self._outside_of_layers(name)

    def _outside_of_layers(self, name: str) -> str:
        owner = self._modules[name.rpartition(".")[0]]
        if isinstance(owner, nn.Embedding) or "embed" in name.lower():
            return "embedding"
        return "final_norm" if _is_norm(owner) else "other"

    def _half(self, layer: str, child: str) -> str:
        """Which half of its layer a layer's child is; "" for neither."""
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


def _layers(modules: dict[str, nn.Module]) -> Iterator[str]:
    """Names of the members of outermost module lists, in order."""
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    for name in lists:
        if not any(name.startswith(f"{other}.") for other in lists):
            yield from (f"{name}.{child}" for child, _ in modules[name].named_children())


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _weights_of(model: Any, getter: str) -> set[int]:
    """The parameters of what a transformers model calls its input or output embeddings."""
    try:
        module = getattr(model, getter)()
    except Exception:  # noqa: BLE001 - a model of any kind, whose method may be another one
        return set()
    if isinstance(module, nn.Parameter):
        return {id(module)}
    return set(map(id, module.parameters())) if isinstance(module, nn.Module) else set()
