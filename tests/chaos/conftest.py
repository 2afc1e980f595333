"""Server that the campaigns attack, and the seeds of their rounds.

A campaign is a test that takes `rounds`, the seeds of its rounds. In the suite it has a round or
two; `make chaos` sets CHAOS_ROUNDS, and CHAOS_SEED to begin with others. A round that fails is
repeated by CHAOS_SEED=<its seed> CHAOS_ROUNDS=1.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess

DEFAULT_ROUNDS = 2
DEFAULT_FAULT_ROUNDS = 1


@pytest.fixture
def rounds() -> range:
    """Give the seeds of the rounds to run."""
    first = int(os.environ.get("CHAOS_SEED", "1"))
    return range(first, first + int(os.environ.get("CHAOS_ROUNDS", DEFAULT_ROUNDS)))


@pytest.fixture
def fault_rounds() -> range:
    """Give the seeds of the rounds to run of a fault that takes seconds to strike and to mend."""
    first = int(os.environ.get("CHAOS_SEED", "1"))
    return range(first, first + int(os.environ.get("FAULT_ROUNDS", DEFAULT_FAULT_ROUNDS)))


@pytest.fixture(scope="session")
def attacked(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Give a server on a tiny model with a long context, as shipped."""
    with ServerProcess(tiny_model("gpt2-long"), tmp_path_factory.mktemp("chaos")) as process:
        yield process
