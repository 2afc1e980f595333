"""Checkpoints with quantized weights: whether transformers can read them on this machine.

transformers checks it too, but only after whence has begun to hash the weight files.
"""

import copy
import json
from pathlib import Path
from typing import Any

from transformers.quantizers import AutoHfQuantizer

from whence_server.domain.errors import ConfigurationError

PACKAGES = {
    "awq": "gptqmodel accelerate",
    "bitsandbytes": "bitsandbytes accelerate",
    "compressed-tensors": "compressed-tensors accelerate",
    "fp8": "accelerate",
    "gptq": "gptqmodel optimum",
    "torchao": "torchao",
}
"""Packages that transformers needs for the weights of a method; its own message names others."""


def check_quantization(directory: Path, config: Any) -> None:
    """Check that transformers can read a checkpoint's quantized weights on this machine.

    Args:
        directory: the model's directory.
        config: its config, as transformers reads it.

    Raises:
        ConfigurationError: packages or a GPU are missing, or transformers does not know the method.
    """
    settings = _find_settings(config)
    if settings is None:
        return
    method = str(settings.get("quant_method", ""))
    what = f"{directory / 'config.json'} has quantized weights (quant_method {method!r})"
    if not AutoHfQuantizer.supports_quant_method(settings):
        raise ConfigurationError(
            f"{what}, which transformers does not know: use a checkpoint with another "
            "quantization, or with none"
        )
    try:
        quantizer = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        remedy = f"; pip install {PACKAGES[method]}" if method in PACKAGES else ""
        raise ConfigurationError(
            f"{what}, which cannot be read on this machine: {reason}{remedy}"
        ) from error


def is_quantized(config: Any) -> bool:
    """Return whether a config says that its checkpoint has quantized weights."""
    return _find_settings(config) is not None


def _find_settings(config: Any) -> dict[str, Any] | None:
    """Return the quantization of a config, or of the part for text; None if there is none."""
    settings = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    return settings if settings is None or isinstance(settings, dict) else settings.to_dict()


def read_method(directory: Path) -> str:
    """Return the quantization method that a model's config.json names; "" if it names none."""
    config = json.loads((directory / "config.json").read_bytes())
    text = config.get("text_config")
    settings = config.get("quantization_config") or (
        text.get("quantization_config") if isinstance(text, dict) else None
    )
    return str((settings or {}).get("quant_method", ""))
