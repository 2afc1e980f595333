"""Fixtures that several suites share."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the directory of a tiny saved model, made once for each (architecture, seed)."""
    from tiny_models import save_tiny_model

    made: dict[tuple[str, int], Path] = {}

    def make(architecture: str = "gpt2", seed: int = 0) -> Path:
        key = (architecture, seed)
        if key not in made:
            directory = tmp_path_factory.mktemp(f"{architecture}-{seed}")
            made[key] = save_tiny_model(directory, architecture, seed)
        return made[key]

    return make
