"""Initial model of a training: a new one, or an existing one."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from whence_server.config.training import TrainConfig
from whence_server.domain.errors import ConfigurationError
from whence_server.engines.transformers.context import CONTEXT_LENGTH_FIELDS
from whence_server.engines.transformers.pretrained import load_trainable

_log = logging.getLogger(__name__)

TOKENIZERS_FIELDS = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "loss_type")
"""Fields that the tokenizer and the task determine; a given configuration's are replaced."""

SMALL_GPT2 = {
    "n_layer": 4,
    "n_head": 6,
    "n_embd": 192,
    # A short training does not need dropout.
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    # The default function in one kernel, which saves a seventh of the training's time.
    "activation_function": "gelu_pytorch_tanh",
}


def create_initial_model(settings: TrainConfig, tokenizer: Any) -> Any:
    """Create or load the model before the first step; new weights use torch's random state.

    Raises:
        ConfigurationError: the settings are invalid, or the model does not fit the tokenizer or the
            block size.
    """
    if settings.from_model:
        model = load_trainable(Path(settings.from_model), settings.dtype)
        _require_room(model.config, tokenizer, settings.block_size, f"--from {settings.from_model}")
        return model
    config = _make_configuration(settings, tokenizer)
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, settings.dtype))
    except Exception as error:
        raise ConfigurationError(f"the model cannot be created: {error}") from error
    end = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=config.pad_token_id
    )
    return model


def _make_configuration(settings: TrainConfig, tokenizer: Any) -> Any:
    overrides = dict(_parse_override(text) for text in settings.config_override)
    config = _load_base_configuration(settings)
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConfigurationError(
            f"a {config.model_type!r} model cannot generate text: AutoModelForCausalLM of "
            f"transformers {transformers.__version__} has no class for it"
        )
    fields_given = config.to_dict()
    fields = fields_given | {"vocab_size": len(tokenizer)}
    if not settings.config and settings.model_type == "gpt2":
        fields["n_positions"] = settings.block_size
    unknown = [name for name in overrides if not hasattr(config, name)]
    if unknown:
        raise ConfigurationError(
            f"--config-override {unknown[0]}: a {config.model_type!r} model has no such field"
        )
    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": pad}
    try:
        # Set explicitly, as transformers cannot derive it from some classes' names.
        made = type(config)(**fields | ids | {"loss_type": "ForCausalLM"} | overrides)
    except Exception as error:
        raise ConfigurationError(f"the configuration is invalid: {error}") from error
    _require_room(made, tokenizer, settings.block_size, "the configuration")
    if settings.config:
        _log_changes(settings.config, fields_given, made)
    return made


def _log_changes(path: str, given: Mapping[str, Any], made: Any) -> None:
    """Log the fields of a given configuration that were replaced."""
    changes = [
        f"{name} is {getattr(made, name)} instead of {given[name]}"
        for name in TOKENIZERS_FIELDS
        if given.get(name) is not None and given[name] != getattr(made, name, None)
    ]
    if changes:
        _log.warning("--config %s: %s", path, ", ".join(changes))


def _load_base_configuration(settings: TrainConfig) -> Any:
    if settings.config:
        try:
            return AutoConfig.from_pretrained(settings.config)
        except Exception as error:
            raise ConfigurationError(
                f"--config {settings.config}: {_get_first_line(error)}"
            ) from error
    if settings.model_type not in transformers.CONFIG_MAPPING:
        raise ConfigurationError(
            f"--model-type {settings.model_type!r}: transformers {transformers.__version__} has no "
            "kind of model with this name"
        )
    defaults = SMALL_GPT2 if settings.model_type == "gpt2" else {}
    return AutoConfig.for_model(settings.model_type, **defaults)


def _require_room(config: Any, tokenizer: Any, block_size: int, whose: str) -> None:
    text_config = config.get_text_config(decoder=True)
    if text_config.vocab_size < len(tokenizer):
        raise ConfigurationError(
            f"{whose} has a vocabulary of {text_config.vocab_size}; the tokenizer has "
            f"{len(tokenizer)} entries"
        )
    for field in CONTEXT_LENGTH_FIELDS:
        context = getattr(text_config, field, None)
        if isinstance(context, int) and 0 < context < block_size:
            raise ConfigurationError(
                f"--block-size {block_size}: {whose} has a context of {context} tokens ({field})"
            )


def _parse_override(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _get_first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))
