"""Conditions of the trials of a model: everything that their findings depend on."""

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

MODULES_OF_PASSES = (
    "transformers.cache_utils",
    "transformers.integrations.sdpa_attention",
    "transformers.masking_utils",
    "transformers.modeling_rope_utils",
    "transformers.modeling_utils",
)
"""Modules that take part in a forward pass beside the model's own."""


def digest_conditions(
    model: Any, model_digest: str, weights_digest: str, settings: Sequence[object]
) -> str:
    """Return the SHA-256 of everything that the trials of a model depend on.

    These are its files and its tensors; the code of the engine and of the model's forward pass; the
    versions and builds of Python, torch and transformers; the processor or device; the environment
    variables that choose kernels; dtype, number of threads and settings.

    Args:
        model: as loaded, before the trials.
        model_digest: digest of its files.
        weights_digest: digest of its tensors in memory.
        settings: further settings on which the findings depend, with the environment variables
            that choose kernels.
    """
    conditions = {
        "model": model_digest,
        "weights": weights_digest,
        "settings": settings,
        "attention": model.config.get_text_config(decoder=True)._attn_implementation,  # noqa: SLF001 - no other way
        "dtype": str(model.dtype),
        "device": _describe_device(model.device),
        "threads": torch.get_num_threads(),
        "python": sys.version,
        "whence": importlib.metadata.version("whence"),
        "torch": [torch.__version__, torch.__config__.show(), torch.get_float32_matmul_precision()],
        "transformers": transformers.__version__,
        "processor": _describe_processor(),
        "code": _digest_code(model),
    }
    return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()


def _describe_device(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    return f"{device}, {torch.cuda.get_device_properties(device)}"


def _describe_processor() -> list[str]:
    """Return the processor's name and features, as far as the system tells them."""
    described = [platform.machine(), torch.backends.cpu.get_cpu_capability()]
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return [*described, platform.processor()]
    return described + sorted({line for line in lines if line.startswith(("model", "flags"))})


def _digest_code(model: Any) -> str:
    digest = hashlib.sha256()
    for path in sorted(_list_code(model)):
        digest.update(f"{path}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _list_code(model: Any) -> set[Path]:
    """Return the files of the engine, and of the classes that take part in a forward pass."""
    names = {type(module).__module__ for module in model.modules()} | {*MODULES_OF_PASSES}
    return {*Path(__file__).parent.rglob("*.py"), *_list_files(names)}


def _list_files(names: set[str]) -> Iterator[Path]:
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and Path(file).is_file():
            yield Path(file)
