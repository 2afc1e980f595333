"""Environment variables of the process, for code without a settings object.

Commands read their settings from flags and environment variables (`config.settings`,
`config.training`). A user's own training script has no flags of whence: its recorder reads the
environment here.
"""

import os
from collections.abc import Mapping

from whence_server.config.training import ACCELERATE

_DETERMINISM = frozenset(
    {
        "ATEN_CPU_CAPABILITY",
        "CUBLAS_WORKSPACE_CONFIG",
        "MKL_NUM_THREADS",
        "OMP_NUM_THREADS",
        "PYTHONHASHSEED",
    }
)

_KERNELS = ("ATEN_", "CUBLAS_", "CUDA_", "DNNL_", "KMP_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_")
"""Beginnings of the names of variables that choose kernels."""


def copy_environment() -> Mapping[str, str]:
    """Return a copy of the present environment variables."""
    return dict(os.environ)


def read_determinism_variables() -> dict[str, str]:
    """Return the variables that decide if a training is reproducible bit by bit, by name."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _DETERMINISM or name.startswith(ACCELERATE)
    }


def read_kernel_variables() -> dict[str, str]:
    """Return the variables by which torch and its libraries choose their kernels, by name."""
    return {name: value for name, value in os.environ.items() if name.startswith(_KERNELS)}


def read_world_size() -> int:
    """Return the number of processes that train together, which torchrun sets; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def use_passive_waiting() -> None:
    """Make OpenMP's threads sleep while they wait, unless the user set OMP_WAIT_POLICY.

    Spinning threads make a training ten times slower beside any other busy process. OpenMP reads
    the variable once, when torch is loaded: call this function before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
