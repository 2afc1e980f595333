"""The front process never imports modules of the engine."""

import subprocess
import sys

LOADED = """
import sys
import whence_server.app, whence_server.cli
import whence_server.engines.upstream.engine, whence_server.engines.upstream.opening
print(*sorted(sys.modules))
"""


def test_the_front_imports_neither_torch_nor_transformers() -> None:
    result = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    loaded = set(result.stdout.split())
    assert "whence_server.rpc.server" in loaded
    assert not loaded & {"torch", "transformers", "numba", "safetensors", "accelerate"}
