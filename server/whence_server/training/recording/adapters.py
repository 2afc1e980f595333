"""PEFT adapters in memory, for example LoRA: their tensors, and the frozen base model.

Supported are a `PeftModel` around a model, a transformers model with `add_adapter`, and a model
with one of these as a submodule.
"""

import json
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

DEFAULT = "default"
"""PEFT's name for the adapter that is saved in the directory itself; others get a subfolder."""


def find_adapted(model: Any) -> Any | None:
    """Return the model or submodule that has adapters; None if there is none."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, nn.Module):
        return None
    for module in model.modules():
        if isinstance(module, peft.PeftModel) or _is_extended(module):
            return module if getattr(module, "peft_config", None) else None
    return None


def get_trained_state(model: Any) -> dict[str, torch.Tensor]:
    """Return the tensors that a training changes: the adapters', or all of the model's.

    Adapters' tensors have the names under which PEFT saves them; the name of an adapter other than
    the default one is their prefix.
    """
    inner = find_adapted(model)
    if inner is None:
        return _select_tensors(model.state_dict())
    return {
        format_adapter_prefix(adapter) + name: tensor
        for adapter in inner.peft_config
        for name, tensor in _select_tensors(_get_adapter_state(inner, adapter)).items()
    }


def get_base_state(inner: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of the base model, under their names without adapters.

    Args:
        inner: a model with adapters; see `find_adapted`.

    Returns:
        The tensors by name; empty if PEFT is too old.
    """
    try:
        from peft.utils.save_and_load import get_base_model_state_dict
    except ImportError:
        return {}
    as_peft = inner
    if _is_extended(inner):
        below = SimpleNamespace(model=inner)
        as_peft = SimpleNamespace(base_model=below, _is_prompt_learning=False)
    return _select_tensors(get_base_model_state_dict(as_peft))


def get_base(inner: Any) -> Any:
    """Return the base model of adapters; its class is the architecture."""
    return inner if _is_extended(inner) else inner.get_base_model()


def get_architecture(model: Any) -> str:
    """Return the class name of a model, or of the base model of its adapters."""
    inner = find_adapted(model)
    # A model with an adapter in a submodule has its own class.
    return type(get_base(inner) if inner is model and inner is not None else model).__name__


def format_config_json(inner: Any) -> str:
    """Return the configurations of the adapters, by name, as a JSON object."""
    configs = {name: config.to_dict() for name, config in inner.peft_config.items()}
    return json.dumps(configs, default=_convert_for_json, sort_keys=True)


def format_adapter_prefix(adapter: str) -> str:
    """Return the prefix of the names of an adapter's tensors."""
    return "" if adapter == DEFAULT else f"{adapter}/"


def _get_adapter_state(inner: Any, adapter: str) -> Mapping[str, Any]:
    from peft import get_peft_model_state_dict

    # Saved embeddings are digested from the files; PEFT would query the hub to find them here.
    state: dict[str, Any] = get_peft_model_state_dict(
        inner, adapter_name=adapter, save_embedding_layers=False
    )
    if not _is_extended(inner):
        return state
    # As transformers saves them.
    return {f"base_model.model.{name}": tensor for name, tensor in state.items()}


def _is_extended(module: Any) -> bool:
    """Return whether a module is a transformers model with adapters added by `add_adapter`."""
    return vars(module).get("_hf_peft_config_loaded") is True


def _select_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of a state dict, without other values."""
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _convert_for_json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)
