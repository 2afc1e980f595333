"""A real llama.cpp that is started anew between two questions about its health."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backend_process import find_free_port
from server_process import ServerProcess
from upstream_servers import find_gguf, run_llama_cpp
from waiting import wait_until

from whence import Client
from whence.errors import WhenceError

PROMPT = "The capital of France is"


class Restartable:
    """llama.cpp's server on one port, with one file after the other under one name."""

    def __init__(self, directory: Path, start: Callable[..., contextlib.AbstractContextManager]):
        self._directory = directory
        self._start = start
        self._running = contextlib.ExitStack()
        self._number = 0
        self.port = find_free_port()
        self.url = ""

    def serve(self, gguf: Path) -> None:
        """Serve a file; what ran before has ended."""
        self._running.close()
        self._number += 1
        directory = self._directory / str(self._number)
        self.url = self._running.enter_context(
            self._start(directory, gguf=gguf, port=self.port, num_slots=1)
        )

    def close(self) -> None:
        self._running.close()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Restartable]:
    made = Restartable(tmp_path, run_llama_cpp)
    yield made
    made.close()


def ask(client: Client) -> str:
    """Generate a few tokens; return the file that the record names."""
    with client.generate(PROMPT, max_new_tokens=2, greedy=True) as generation:
        generation.result()
    assert generation.started is not None
    return generation.started.upstream.claimed_files


@pytest.mark.timeout(240)
def test_the_next_record_after_a_restart_names_the_new_model_or_there_is_none(
    upstream: Restartable, tmp_path: Path
) -> None:
    first, second = find_gguf(), tmp_path / "another.gguf"
    second.symlink_to(first)
    upstream.serve(first)
    flags = ("--upstream", f"{upstream.url}/v1")
    with ServerProcess(None, tmp_path / "data", *flags) as server, Client(server.target) as client:
        assert Path(ask(client)).name == first.name
        upstream.serve(second)
        # The name that it has for the model is the same, and no answer tells the file.
        refused, named = "", second.name
        try:
            named = Path(ask(client)).name
        except WhenceError as error:
            refused = str(error)
        assert named == second.name
        assert not refused or "is another one than" in refused
        said = "came back as another one"
        asyncio.run(wait_until(lambda: any(said in line for line in server.log)))
        assert Path(ask(client)).name == second.name
        (model,) = client.models()
        assert Path(model.upstream.claimed_files).name == second.name
