"""Environment of a training: versions, hardware and settings that affect reproducibility."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from whence_server.config.environment import read_determinism_variables

_PACKAGES = (
    "accelerate",
    "datasets",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "whence",
)


def collect_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are involved, by name."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe_hardware(device: torch.device) -> dict[str, str]:
    """Describe the hardware, with names from the operating system and torch."""
    found = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpu": _read_cpu_model(),
        "cores": str(os.cpu_count()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        "device": str(device),
    }
    if device.type == "cuda":
        found["device_name"] = torch.cuda.get_device_name(device)
        found["cuda"] = str(torch.version.cuda)
    return found


def collect_determinism_settings(arguments: Any) -> dict[str, str]:
    """Return the settings that affect bitwise results: seeds, threads, precision, variables.

    Args:
        arguments: the trainer's `TrainingArguments`.
    """
    found = {
        "seed": arguments.seed,
        "data_seed": arguments.data_seed,
        "full_determinism": arguments.full_determinism,
        "bf16": arguments.bf16,
        "fp16": arguments.fp16,
        "tf32": arguments.tf32,
        "mixed_precision": getattr(arguments, "mixed_precision", None),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
        "dataloader_num_workers": arguments.dataloader_num_workers,
    }
    found |= read_determinism_variables()
    return {name: str(value) for name, value in found.items()}


def _read_cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
