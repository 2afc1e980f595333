"""Branches of a model's layers: the modules whose outputs are added to the residual stream.

A pass within `cut_branches` gives each branch's output a gradient of its own, and none to what the
branch computed it from. The gradient of a logit then tells how the branch's output reaches the
logit along the residual stream alone.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from whence_server.engines.transformers.internals.layers import find_layers

_MLP_NAMES = ("mlp", "feed_forward", "feedforward", "ffn", "moe", "expert", "fc")
_MLP_ENDS = ("mlp", "moe", "moeblock", "experts", "ffn", "feedforward")


class CutPlace(NamedTuple):
    """Module whose output is cut.

    Attributes:
        name: the branch's attribute in its layer, in lower case.
        kind: class of the branch, in lower case.
        module: the branch itself, or the last linear module in it.
    """

    name: str
    kind: str
    module: Any

    @property
    def is_mlp(self) -> bool:
        """True for the position-wise part of a layer, with experts or without."""
        return any(name in self.name for name in _MLP_NAMES) or self.kind.endswith(_MLP_ENDS)

    @property
    def attends(self) -> bool:
        """True for attention of any kind."""
        return any(
            word in part for part in (self.name, self.kind) for word in ("attention", "attn")
        )


class Branch(NamedTuple):
    """One branch in one pass.

    Attributes:
        layer: index of its layer.
        place: the module.
        output: its output at the read positions, [n, width]; a leaf of the gradient.
        projection: the linear module that gave the output unchanged; None if there is none.
        given: input of the projection at the read positions, [n, inputs]; None without one.
        depends: True if the branch's input has a gradient.
    """

    layer: int
    place: CutPlace
    output: torch.Tensor
    projection: torch.nn.Module | None
    given: torch.Tensor | None
    depends: bool


@dataclass
class Cuts:
    """Leaves of a pass, in the order of the computation.

    Attributes:
        embedded: input of the first layer at the read positions, [n, width]; None if not cut.
        branches: the branches, in order.
    """

    embedded: torch.Tensor | None = None
    branches: list[Branch] = field(default_factory=list)


@contextmanager
def cut_branches(
    layers: Sequence[torch.nn.Module],
    places: Sequence[CutPlace],
    num_places: int,
    *,
    from_embedding: bool = True,
    without_mlps: bool = False,
) -> Iterator[Cuts]:
    """Cut the branches in the pass within the context.

    Args:
        layers: the model's layers, or those that run.
        places: where to cut.
        num_places: n, the number of last positions whose outputs are leaves.
        from_embedding: True if the input of the first layer is cut as well.
        without_mlps: True to add nothing to the stream for the MLPs.
    """
    cutter = _Cutter(num_places, from_embedding=from_embedding, without_mlps=without_mlps)
    with ExitStack() as stack:
        for index, layer in enumerate(layers):
            handle = layer.register_forward_pre_hook(
                lambda _layer, args, kwargs, index=index: cutter.enter_layer(index, args, kwargs),
                with_kwargs=True,
            )
            stack.callback(handle.remove)
        for place in places:
            stack.enter_context(cutter.cut(place))
        yield cutter.cuts


def list_branches(layers: Sequence[torch.nn.Module]) -> list[CutPlace]:
    """Return the layers' parts that can be branches, each once."""
    found: dict[Any, CutPlace] = {}
    for layer in layers:
        for name, child in _list_parts(layer):
            kind = type(child).__name__.lower()
            found.setdefault(child, CutPlace(name.lower(), kind, child))
    return list(found.values())


def list_last_linears(model: Any, ids: torch.Tensor) -> list[CutPlace]:
    """Return the last linear module that each branch calls in a pass.

    For branches that add the residual stream themselves, as Bloom's do.
    """
    found: dict[Any, CutPlace] = {}
    with ExitStack() as stack:
        for place in list_branches(list(find_layers(model))):
            linears: list[Any] = []
            for part in place.module.modules():
                if is_linear(part):
                    handle = part.register_forward_hook(
                        lambda called, _args, _output, linears=linears: linears.append(called)
                    )
                    stack.callback(handle.remove)
            handle = place.module.register_forward_hook(
                lambda _module, _args, _output, place=place, linears=linears: found.update(
                    {linears[-1]: place._replace(module=linears[-1])} if linears else {}
                )
            )
            stack.callback(handle.remove)
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    return list(found.values())


def is_linear(module: torch.nn.Module) -> bool:
    """Return whether a module has a weight matrix, as Linear and transformers' Conv1D do."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() == 2


def _list_parts(layer: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, child in layer.named_children():
        if isinstance(child, torch.nn.ModuleList):
            yield from _list_parts(child)
        elif "norm" not in type(child).__name__.lower() and any(
            parameter.dim() > 1 for parameter in child.parameters()
        ):
            yield name, child


class _Cutter:
    """Maker of the leaves of one pass."""

    def __init__(self, num_places: int, *, from_embedding: bool, without_mlps: bool) -> None:
        self._num_places = num_places
        self._from_embedding = from_embedding
        self._without_mlps = without_mlps
        self._layer = 0
        self._last: tuple[torch.nn.Module, torch.Tensor, torch.Tensor] | None = None
        self.cuts = Cuts()

    def enter_layer(
        self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Note the layer, and cut the stream before the first one; a forward pre-hook."""
        self._layer = index
        if index or not self._from_embedding:
            return None
        hidden = args[0] if args else kwargs["hidden_states"]
        self.cuts.embedded, cut = self._cut(hidden)
        return ((cut, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": cut})

    @contextmanager
    def cut(self, place: CutPlace) -> Iterator[None]:
        """Cut a branch within the context."""
        compute: Callable[..., Any] = place.module.forward
        with ExitStack() as stack:
            for part in place.module.modules():
                if is_linear(part) and part is not place.module:
                    stack.callback(part.register_forward_hook(self._note).remove)
            place.module.forward = lambda *args, **kwargs: self._run(place, compute, args, kwargs)
            try:
                yield
            finally:
                del place.module.forward

    def _note(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Keep the input and the output of a linear module; a forward hook."""
        if args and isinstance(args[0], torch.Tensor) and isinstance(output, torch.Tensor):
            self._last = (module, self._take(args[0]), self._take(output))

    def _run(
        self, place: CutPlace, compute: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """Run a branch, and put a leaf in the place of its output."""
        self._last = None
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        with torch.no_grad():
            output = compute(*args, **kwargs)
        hidden = output[0] if isinstance(output, tuple) else output
        if is_linear(place.module):
            self._note(place.module, tuple(given), hidden)
        leaf, cut = self._cut(hidden)
        projection, fed = self._find_projection(leaf)
        depends = any(value.requires_grad for value in given)
        self.cuts.branches.append(Branch(self._layer, place, leaf, projection, fed, depends))
        if self._without_mlps and place.is_mlp:
            cut = torch.zeros_like(cut)
        return (cut, *output[1:]) if isinstance(output, tuple) else cut

    def _find_projection(
        self, leaf: torch.Tensor
    ) -> tuple[torch.nn.Module, torch.Tensor] | tuple[None, None]:
        """Return the linear module that ran last and its input, if its output is the leaf."""
        if self._last is None:
            return None, None
        module, given, output = self._last
        if output.shape != leaf.shape or not torch.equal(output, leaf):
            return None, None
        return module, given

    def _cut(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the leaf, [n, width], and the stream with the leaf in it."""
        leaf = self._take(hidden).clone().requires_grad_()
        whole = leaf.expand(*hidden.shape[:-2], -1, -1)
        return leaf, torch.cat((hidden[..., : -self._num_places, :].detach(), whole), -2)

    def _take(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.detach()[..., -self._num_places :, :].reshape(-1, hidden.shape[-1])
