"""Ways in which segments are taken out of a context, and those that a model has."""

import inspect
from enum import StrEnum
from typing import Any, NamedTuple

from transformers.cache_utils import get_layer_types_and_kwargs

from whence_server.domain.errors import NotOfferedError
from whence_server.engines.transformers import frequencies
from whence_server.engines.transformers.pass_dependence import find_pass_dependence

_ATTENTION = {"full_attention", "sliding_attention"}


class Operator(StrEnum):
    """Way in which segments are taken out; `AblationOperator` in the contract."""

    REMOVE = "remove"
    """Their tokens are removed from the text, and later ones move up."""
    HIDE = "hide"
    """Their tokens stay, and no later token attends to them."""

    @property
    def other(self) -> "Operator":
        """The other operator, under which a result is put to the test."""
        return Operator.HIDE if self is Operator.REMOVE else Operator.REMOVE


class CallingStyle(NamedTuple):
    """Ways in which a model can be called.

    Attributes:
        num_layers: number of layers of its cache.
        reuses_prefix: true if what it computed for a prefix can be used again.
        skips_hidden: true if hidden tokens need not be read: positions alone say where tokens are.
        operators: operators that the model has.
        parameters: names of the arguments of its forward pass.
    """

    num_layers: int
    reuses_prefix: bool
    skips_hidden: bool
    operators: tuple[Operator, ...]
    parameters: frozenset[str]


def find_style(model: Any) -> CallingStyle:
    """Return the ways in which a model can be called."""
    parameters = frozenset(inspect.signature(model.forward).parameters)
    layer_types, _ = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
    attends = not getattr(model, "_is_stateful", False) and set(layer_types) <= _ATTENTION
    takes_positions = attends and {"position_ids", "attention_mask"} <= parameters
    # A recurrent state has no tokens to hide, and ALiBi's distances come from the mask.
    hides = takes_positions and not _has_distances(model)
    return CallingStyle(
        len(layer_types),
        attends
        and "past_key_values" in parameters
        and not frequencies.find(model)
        and not find_pass_dependence(model),
        # A window is counted in columns of the cache.
        hides and set(layer_types) == {"full_attention"},
        (Operator.REMOVE, Operator.HIDE) if hides else (Operator.REMOVE,),
        parameters,
    )


def check_operator(model: Any, style: CallingStyle, operator: Operator) -> None:
    """Refuse an operator that the model lacks.

    Raises:
        NotOfferedError: the model cannot hide tokens.
    """
    if operator not in style.operators:
        raise NotOfferedError(
            f"operator {operator.value}: {type(model).__name__} does not attend by position, so "
            "that no token can be hidden from later ones: use remove"
        )


def _has_distances(model: Any) -> bool:
    """Return whether attention reads distances from the mask, as with ALiBi."""
    config = model.config.get_text_config(decoder=True)
    return bool(getattr(config, "alibi", False)) or config.model_type in {"bloom", "mpt"}
