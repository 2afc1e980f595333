"""Real inference servers of others, which serve SmolLM2-135M-Instruct for tests.

`make llama-cpp` and `make vllm` make them ready under build/, apart from our own packages.
"""

import contextlib
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from backend_process import ENVIRONMENTS, find_free_port, find_python, run_backend
from required import skip_without

from whence_server.demo.cache import find_cache_dir, hold_lock
from whence_server.demo.real_weights import ensure_gguf
from whence_server.domain.errors import ConfigurationError

MODEL = "SmolLM2-135M-Instruct"
"""Name by which both servers know the model."""
_START_TIMEOUT_S = {"llama-cpp": 120.0, "vllm": 480.0}


def find_llama_server() -> Path:
    """Return llama.cpp's server; skip the test if it is not compiled."""
    environment = ENVIRONMENTS / "llama-cpp"
    if not (environment / ".ready").exists():
        skip_without("llama_cpp", "llama.cpp's server is not compiled: run `make llama-cpp`")
    return environment / "llama-server"


def find_gguf() -> Path:
    """Return the model's GGUF file in the user's cache; download it first if it is missing."""
    cache = find_cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(cache / f"{MODEL}.lock"):
            return ensure_gguf(cache)
    except ConfigurationError as error:
        skip_without("real_model", str(error))


@contextlib.contextmanager
def run_llama_cpp(
    directory: Path,
    *flags: str,
    num_slots: int = 4,
    num_threads: int = 1,
    gguf: Path | None = None,
    port: int = 0,
) -> Iterator[str]:
    """Run llama.cpp's server on a port until the block is left; yield its URL, without /v1.

    It keeps 2,048 positions for each request that it works on.

    Args:
        directory: a new directory for its log.
        flags: further flags of `llama-server`.
        num_slots: number of requests that it works on at once.
        num_threads: number of threads that compute.
        gguf: file of the model; None for the real model's.
        port: its port; 0 for a free one.
    """
    server, port = find_llama_server(), port or find_free_port()
    command = [
        *(str(server), "--model", str(gguf or find_gguf()), "--alias", MODEL),
        *("--host", "127.0.0.1", "--port", str(port), "--threads", str(num_threads)),
        *("--parallel", str(num_slots), "--ctx-size", str(num_slots * 2048)),
        *("--metrics", "--slots", "--offline", "--no-ui", *flags),
    ]
    # Threads that wait sleep: others compute on the same cores.
    with run_backend(command, directory, OMP_WAIT_POLICY="PASSIVE"):
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(f"{url}/health", _START_TIMEOUT_S["llama-cpp"])
        yield url


@contextlib.contextmanager
def run_vllm(directory: Path, model: Path, *flags: str) -> Iterator[str]:
    """Run vLLM on a free port until the block is left; yield its URL, without /v1.

    Args:
        directory: a new directory for its log.
        model: directory of the model, in transformers' format.
        flags: further flags of `vllm serve`.
    """
    port = find_free_port()
    command = [
        *(str(find_python("vllm")), "-m", "vllm.entrypoints.cli.main", "serve", str(model)),
        *("--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs"),
        *("8", *flags),
    ]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    with run_backend(command, directory, **environment):
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(f"{url}/health", _START_TIMEOUT_S["vllm"])
        yield url


def wait_until_healthy(url: str, timeout_s: float) -> None:
    """Wait until GET `url` answers 200.

    Raises:
        AssertionError: it did not in `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=10):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise AssertionError(f"{url} answered last: {error}") from None
        time.sleep(0.05)
