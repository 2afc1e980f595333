"""A running server and loaded models, shared by the tests that leave them as they found them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest
from server_process import ServerProcess

if TYPE_CHECKING:
    from paced_model import PacedModel

    from whence_server.engines.transformers.loading import LoadedModel


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


@pytest.fixture(scope="session")
def models(tiny_model: Callable[..., Path]) -> "Callable[[str], LoadedModel]":
    """Return a function that loads an architecture as the engine does, once in this process."""
    from engine_harness import loaded_model

    loaded: dict[str, LoadedModel] = {}

    def get(architecture: str) -> "LoadedModel":
        if architecture not in loaded:
            loaded[architecture] = loaded_model(tiny_model(architecture))
        return loaded[architecture]

    return get


@pytest.fixture(scope="session")
def paced_model(tmp_path_factory: pytest.TempPathFactory) -> "PacedModel":
    """A model whose steps take 5 ms, and which a test can hold."""
    from paced_model import save_paced_model

    return save_paced_model(tmp_path_factory.mktemp("paced") / "model", step_s=0.005)


@pytest.fixture(scope="session")
def paced_server(
    paced_model: "PacedModel", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server on the paced model, on TCP, with a short progress interval."""
    with ServerProcess(
        paced_model.directory,
        tmp_path_factory.mktemp("paced-server"),
        *("--trust-remote-code", "--listen", "127.0.0.1:0", "--progress-interval", "0.5"),
    ) as process:
        yield process


@pytest.fixture(scope="session")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real llama.cpp server on SmolLM2-135M-Instruct (Q4_1), without /v1.

    The test is skipped if `make llama-cpp` has not compiled it.
    """
    from upstream_servers import run_llama_cpp

    with run_llama_cpp(tmp_path_factory.mktemp("llama-cpp") / "server") as url:
        yield url


@pytest.fixture(scope="session")
def vllm(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real vLLM on SmolLM2-135M-Instruct in float32, without /v1.

    The test is skipped if `make vllm` has not installed it.
    """
    from upstream_servers import run_vllm

    with run_vllm(tmp_path_factory.mktemp("vllm") / "server", real_model) as url:
        yield url
