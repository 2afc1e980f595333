"""Adapters in memory (LoRA and its kin, by PEFT): their own tensors, and the frozen model below.

Both ways that transformers knows are covered: a `PeftModel` around a model, and a model that an
adapter was added to. A model may also hold either somewhere inside.
"""

import json
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

DEFAULT = "default"
"""PEFT's name for an adapter that is saved in the directory itself; others have one below."""


def adapted(model: Any) -> Any | None:
    """The model with adapters in it: this one, or one inside of it; None where there are none."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, nn.Module):
        return None
    for module in model.modules():
        if isinstance(module, peft.PeftModel) or _is_extended(module):
            return module if getattr(module, "peft_config", None) else None
    return None


def own_state(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that a training is about: the adapters', or all of the model's.

    Adapters' tensors are named as PEFT saves them, after the name of the adapter where it is not
    the default one.
    """
    inner = adapted(model)
    if inner is None:
        return _tensors(model.state_dict())
    return {
        adapter_prefix(adapter) + name: tensor
        for adapter in inner.peft_config
        for name, tensor in _tensors(_adapter_state(inner, adapter)).items()
    }


def base_state(inner: Any) -> dict[str, torch.Tensor]:
    """The tensors of the model below the adapters, under the names that it has without them.

    Args:
        inner: see `adapted`.

    Returns:
        Nothing where PEFT is too old to tell.
    """
    try:
        from peft.utils.save_and_load import get_base_model_state_dict
    except ImportError:
        return {}
    as_peft = inner
    if _is_extended(inner):
        below = SimpleNamespace(model=inner)
        as_peft = SimpleNamespace(base_model=below, _is_prompt_learning=False)
    return _tensors(get_base_model_state_dict(as_peft))


def below(inner: Any) -> Any:
    """The model below the adapters, as an object: its class is the architecture."""
    return inner if _is_extended(inner) else inner.get_base_model()


def architecture_of(model: Any) -> str:
    """The class of a model, or of the model below its adapters."""
    inner = adapted(model)
    # What holds an adapter somewhere inside is a class of its own.
    return type(below(inner) if inner is model and inner is not None else model).__name__


def config_json(inner: Any) -> str:
    """The adapters' configurations by their names."""
    configs = {name: config.to_dict() for name, config in inner.peft_config.items()}
    return json.dumps(configs, default=_plain, sort_keys=True)


def adapter_prefix(adapter: str) -> str:
    """What goes before the names of an adapter's tensors."""
    return "" if adapter == DEFAULT else f"{adapter}/"


def _adapter_state(inner: Any, adapter: str) -> Mapping[str, Any]:
    from peft import get_peft_model_state_dict

    # Embeddings that are saved beside an adapter are the files' matter; telling which are asks the
    # hub.
    state: dict[str, Any] = get_peft_model_state_dict(
        inner, adapter_name=adapter, save_embedding_layers=False
    )
    if not _is_extended(inner):
        return state
    # As transformers saves them.
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def _is_extended(module: Any) -> bool:
    """Whether adapters were added to a transformers model itself."""
    return vars(module).get("_hf_peft_config_loaded") is True


def _tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Without what else a module may keep in its state."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
