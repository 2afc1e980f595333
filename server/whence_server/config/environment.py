"""The process's environment variables, for code that starts without a settings object.

Commands read their settings from flags and these variables together (`config.settings`,
`config.training`). A training script of the user's own has no flags of whence's: what the recorder
needs of the environment, it asks for here.
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


def process_environment() -> Mapping[str, str]:
    """Return a copy of the environment variables as they are now."""
    return dict(os.environ)


def determinism_variables() -> dict[str, str]:
    """Return the variables that decide whether a training gives the same bits again, by name."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _DETERMINISM or name.startswith(ACCELERATE)
    }


def world_size() -> int:
    """Return the number of processes that train together, as torchrun tells each of them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def use_passive_waiting() -> None:
    """Have OpenMP's threads sleep while they wait for each other, unless the user chose otherwise.

    Threads that spin make a training ten times slower beside any other busy process. OpenMP reads
    the variable once, when torch is loaded: call this before.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
