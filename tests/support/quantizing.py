"""Quantized forms of a model, made and saved as their packages' own tools save them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

GROUP_SIZE = 64
"""Number of weights with one scale in W4A16: a divisor of the real model's sizes."""


def save_with_bitsandbytes(source: Path, target: Path, bits: int) -> Path:
    """Save a model with its weights in NF4 or in int8, by bitsandbytes."""
    kind: dict[str, Any] = {"load_in_8bit": True}
    if bits == 4:
        kind = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    model = AutoModelForCausalLM.from_pretrained(
        source,
        quantization_config=BitsAndBytesConfig(**kind),
        dtype=torch.float32,
        device_map="cpu",
    )
    return _save(model, source, target)


def save_with_compressed_tensors(source: Path, target: Path, preset: str) -> Path:
    """Save a model quantized by a preset of compressed-tensors, such as W8A8 or FP8_DYNAMIC."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
        preset_name_to_scheme,
    )

    scheme = preset_name_to_scheme(preset, ["Linear"])
    if scheme.weights.group_size:
        scheme.weights.group_size = GROUP_SIZE
    config = QuantizationConfig(
        config_groups={"all": scheme},
        ignore=["lm_head"],
        quantization_status=QuantizationStatus.FROZEN,
    )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    apply_quantization_config(model, config)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            _set_scales(module)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    _save(model, source, target)
    compressor.update_config(target)
    return target


def _set_scales(module: Any) -> None:
    """Compute a layer's scales from the range of its weights."""
    from compressed_tensors.quantization import QuantizationStatus
    from compressed_tensors.quantization.utils import calculate_qparams

    weights, weight = module.quantization_scheme.weights, module.weight
    rows = weight
    if weights.strategy == "tensor":
        rows = weight.reshape(1, -1)
    elif weights.strategy == "group":
        rows = weight.reshape(weight.shape[0], -1, weights.group_size)
    scale, zero_point = calculate_qparams(rows.amin(-1), rows.amax(-1), weights)
    module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
    if hasattr(module, "weight_zero_point"):
        module.weight_zero_point.data.copy_(zero_point.reshape(module.weight_zero_point.shape))
    module.quantization_status = QuantizationStatus.FROZEN


def save_as_fp8(source: Path, target: Path) -> Path:
    """Write a small model as DeepSeek does: FP8 weights with a scale for each block."""
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight = tensors[name]
        # One block holds it all.
        assert max(weight.shape) <= 128
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.reshape(1, 1).float()
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    path = target / "config.json"
    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "fmt": "e4m3",
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    return target


def _save(model: Any, source: Path, target: Path) -> Path:
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    return target
