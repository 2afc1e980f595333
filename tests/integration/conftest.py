"""One running server on a tiny model, shared by the tests that leave it as they found it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from server_process import ServerProcess


@pytest.fixture(scope="session")
def server(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server on a tiny GPT-2 in float32, with everything else as shipped."""
    with ServerProcess(
        tiny_model("gpt2"),
        tmp_path_factory.mktemp("shared"),
        "--model-name",
        "tiny",
        "--max-cache-tokens",
        "4096",
    ) as process:
        yield process


@pytest.fixture
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """A channel to the shared server."""
    with grpc.insecure_channel(server.target) as opened:
        yield opened
