"""Checkpoints with quantized weights that cannot be read here are refused before the weights."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_harness import loaded_model

from whence_server.domain.errors import ConfigurationError

TinyModel = Callable[..., Path]


def mark_quantized(source: Path, target: Path, **settings: object) -> Path:
    """Copy a model without its weights, with a quantization in its config."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    path = target / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": settings}))
    # Weights that cannot be read: the error below comes before.
    (target / "model.safetensors").write_bytes(b"no weights")
    return target


@pytest.mark.parametrize(
    ("package", "settings", "remedy"),
    [
        ("gptqmodel", {"quant_method": "gptq", "bits": 4}, "pip install gptqmodel optimum"),
        ("gptqmodel", {"quant_method": "awq", "bits": 4}, "pip install gptqmodel accelerate"),
        (
            "bitsandbytes",
            {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "pip install bitsandbytes accelerate",
        ),
        (
            "compressed_tensors",
            {"quant_method": "compressed-tensors", "format": "int-quantized"},
            "pip install compressed-tensors accelerate",
        ),
    ],
)
def test_a_quantization_without_its_package_is_refused(
    tiny_model: TinyModel,
    tmp_path: Path,
    package: str,
    settings: dict[str, object],
    remedy: str,
) -> None:
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    directory = mark_quantized(tiny_model("llama"), tmp_path / "model", **settings)
    with pytest.raises(ConfigurationError) as caught:
        loaded_model(directory)
    method = settings["quant_method"]
    assert caught.value.message.startswith(
        f"{directory / 'config.json'} has quantized weights (quant_method {method!r}), which "
        "cannot be read on this machine: "
    )
    assert caught.value.message.endswith(remedy)


def test_an_unknown_quantization_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    directory = mark_quantized(tiny_model("llama"), tmp_path / "model", quant_method="other")
    with pytest.raises(ConfigurationError, match=r"'other'.*transformers does not know"):
        loaded_model(directory)
