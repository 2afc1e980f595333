"""Rotary embeddings whose frequencies depend on the length of a forward pass or of a sequence.

LongRoPE selects one of two sets of frequencies by the longest position of a forward pass. Dynamic
NTK scaling computes new frequencies as a sequence grows, and keeps them in the module for the next
pass, even of another sequence. Hence a chunk of a prompt gets other embeddings than the whole
prompt, and a short sequence other ones beside a long one. These modules are found by calling
them and not by name, because some models have code of their own.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from whence_server.engines.transformers.context import UNLIMITED_CONTEXT, read_max_context_length

logger = logging.getLogger(__name__)

NUM_SHORT = 8
"""Number of positions that are compared with and without a long one beside them."""
LONGEST_TRIED = 1 << 20
TOLERANCE = 1e-6
DEPENDENT_TYPES = ("dynamic", "longrope")
"""transformers' types of rotary embeddings that depend on length, for modules that cannot be
called alone."""


@dataclass(frozen=True, slots=True)
class _Module:
    """Mutable state of one module: its attributes and buffers."""

    attributes: dict[str, Any]
    buffers: dict[str, Any]


class Frequencies:
    """A model's rotary modules that depend on length.

    Args:
        modules: the modules, in the state of a newly loaded model.
    """

    def __init__(self, modules: Sequence[torch.nn.Module]) -> None:
        self._modules = list(modules)
        self._fresh = [_copy_state(module) for module in self._modules]

    def __bool__(self) -> bool:
        """Return whether the model has rotary modules that depend on length."""
        return bool(self._modules)

    def make_state(self) -> "SequenceState":
        """Return the initial state of a sequence."""
        return SequenceState(self._fresh)

    @contextmanager
    def use_state(self, sequence: "SequenceState") -> Iterator[None]:
        """Run forward passes with a sequence's own state, and update that state from them.

        The model's state is restored afterwards.
        """
        if not self._modules:
            yield
            return
        before = [(vars(m).copy(), dict(m._buffers)) for m in self._modules]  # noqa: SLF001 - register_buffer cannot put back what was there
        for module, state in zip(self._modules, sequence.modules, strict=True):
            _put_state(module, _copy_values(state.attributes), _copy_values(state.buffers))
        try:
            yield
            sequence.modules = [_copy_state(module) for module in self._modules]
        finally:
            for module, (attributes, buffers) in zip(self._modules, before, strict=True):
                _put_state(module, {n: v for n, v in attributes.items() if _is_own(n)}, buffers)


@dataclass(slots=True)
class SequenceState:
    """One sequence's state of the rotary modules; replaced after a pass, never changed in place."""

    modules: list[_Module]

    def copy(self) -> "SequenceState":
        """Return an independent copy."""
        return SequenceState(self.modules)


def find(model: Any) -> Frequencies:
    """Find the rotary modules of a newly loaded model that depend on length.

    Modules whose frequencies do not change within the model's context are left out.
    """
    longest = read_max_context_length(model.config.get_text_config(decoder=True))
    position = min(longest, LONGEST_TRIED) - 1
    if position < NUM_SHORT or longest == UNLIMITED_CONTEXT:
        return Frequencies([])
    return Frequencies([m for m in model.modules() if _depends_on_length(m, model, position)])


def _depends_on_length(module: torch.nn.Module, model: Any, position: int) -> bool:
    """Return whether a module's results for positions 0 to 7 change if `position` is added."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except ValueError:  # compiled code
        return False
    by_position = "position_ids" in parameters
    is_leaf = not any(True for _ in module.children()) and not any(
        True for _ in module.parameters(recurse=False)
    )
    if not is_leaf or not (by_position or "seq_len" in parameters):
        return False
    state = Frequencies([module])
    for arguments in _list_arguments(module, parameters):
        try:
            with torch.inference_mode(), state.use_state(state.make_state()):
                alone = _run_module(module, model, None, arguments, by_position=by_position)
                beside = _run_module(module, model, position, arguments, by_position=by_position)
        except Exception as error:  # noqa: BLE001 - code of others: any failure is possible
            logger.debug("%s cannot be called alone: %r", type(module).__name__, error)
            return any(kind in str(getattr(module, "rope_type", "")) for kind in DEPENDENT_TYPES)
        if any(_differ(one, other) for one, other in zip(alone, beside, strict=True)):
            return True
    return False


def _list_arguments(module: torch.nn.Module, parameters: Any) -> list[dict[str, Any]]:
    """Return further arguments for calling a module: one set, or one for each kind of layer."""
    kinds = getattr(module, "rope_type", None)
    if "layer_type" in parameters and isinstance(kinds, dict):
        return [{"layer_type": kind} for kind in kinds]
    return [{}]


def _run_module(
    module: torch.nn.Module,
    model: Any,
    position: int | None,
    arguments: dict[str, Any],
    *,
    by_position: bool,
) -> list[torch.Tensor]:
    """Return a module's results for positions 0 to 7, with `position` added: [..., 8, width]."""
    size = model.config.get_text_config(decoder=True).hidden_size
    hidden = torch.zeros((1, NUM_SHORT, size), device=model.device)
    if by_position:
        ids = list(range(NUM_SHORT)) if position is None else [*range(NUM_SHORT), position]
        arguments = {**arguments, "position_ids": torch.tensor([ids], device=model.device)}
    else:
        arguments = {**arguments, "seq_len": NUM_SHORT if position is None else position + 1}
    try:
        given = module(hidden, **arguments)
    except (IndexError, RuntimeError):
        # Multimodal models have a position in time, height and width for each token.
        if not by_position:
            raise
        arguments["position_ids"] = arguments["position_ids"].expand(3, -1, -1)
        given = module(hidden, **arguments)
    results = given if isinstance(given, tuple) else (given,)
    return [result.narrow(-2, 0, NUM_SHORT) for result in results]


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    return not torch.allclose(one, other, rtol=0, atol=TOLERANCE, equal_nan=True)


def _is_own(name: str) -> bool:
    """Return whether an attribute is the module's own and not torch's."""
    return not name.startswith("_")


def _copy_state(module: torch.nn.Module) -> _Module:
    own = {name: value for name, value in vars(module).items() if _is_own(name)}
    return _Module(_copy_values(own), _copy_values(module._buffers))  # noqa: SLF001 - see `use_state`


def _copy_values(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values with copied tensors, as some modules change tensors in place."""
    return {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
    }


def _put_state(
    module: torch.nn.Module, attributes: dict[str, Any], buffers: dict[str, Any]
) -> None:
    for name in [n for n in vars(module) if _is_own(n) and n not in attributes]:
        delattr(module, name)
    vars(module).update(attributes)
    module._buffers.clear()  # noqa: SLF001 - see `use_state`
    module._buffers.update(buffers)  # noqa: SLF001 - see `use_state`
