"""Jaeger and the Collector, started with the files of deploy/.

In these files nothing is replaced but addresses and paths.
"""

import itertools
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from backend_process import find_free_port, run_backend
from deploy_files import DEPLOY, load_compose, load_yaml
from required import find_program

EVERYWHERE = "0.0.0.0"


class Program:
    """A program that is started, killed and started again.

    Args:
        command: the program and its arguments.
        directory: an empty folder for its output; each start has a folder of its own there.
    """

    def __init__(self, command: list[str], directory: Path) -> None:
        self._command = command
        self._directory = directory
        self._numbers = itertools.count(1)
        self._running = ExitStack()

    def start(self) -> None:
        """Start the program. It may need some time until it answers."""
        directory = self._directory / str(next(self._numbers))
        self._running.enter_context(run_backend(self._command, directory))

    def kill(self) -> None:
        """Kill the program and all of its processes, so that none can flush anything."""
        self._running.close()


class Jaeger(Program):
    """Jaeger, by deploy/jaeger and, if it keeps traces, by compose.keep.yaml's file.

    Attributes:
        page: URL of its page and its API.
        otlp: address to which spans are sent over gRPC.
    """

    def __init__(self, directory: Path, *, keep: bool = False) -> None:
        directory.mkdir()
        query, self.otlp = f"127.0.0.1:{find_free_port()}", f"127.0.0.1:{find_free_port()}"
        self.page = f"http://{query}"
        replaced = {
            f"{EVERYWHERE}:16686": query,
            f"{EVERYWHERE}:16685": free_address(),
            f"{EVERYWHERE}:13133": free_address(),
            f"{EVERYWHERE}:4317": self.otlp,
            f"{EVERYWHERE}:4318": free_address(),
            "/etc/jaeger/ui.json": str(DEPLOY / "jaeger" / "ui.json"),
        }
        command = [find_program("jaeger")]
        command += ["--config", write_replaced("jaeger/config.yaml", directory, replaced)]
        if keep:
            kept = {f"/badger/{it}": str(directory / "badger" / it) for it in ("keys", "values")}
            command += ["--config", write_replaced("jaeger/badger.yaml", directory, kept)]
        super().__init__(command, directory)


class Collector(Program):
    """The Collector, by deploy/collector.

    Attributes:
        otlp: address for spans over gRPC.
        http: URL for spans over HTTP.
    """

    def __init__(self, directory: Path, jaeger: Jaeger) -> None:
        directory.mkdir()
        self.otlp, http = free_address(), free_address()
        self.http = f"http://{http}/v1/traces"
        self._directory = directory
        self._replaced = {
            f"{EVERYWHERE}:4317": self.otlp,
            f"{EVERYWHERE}:4318": http,
            f"{EVERYWHERE}:8889": free_address(),
        }
        self.send_to(jaeger)
        config = str(directory / "config.yaml")
        super().__init__([find_program("otelcol"), "--config", config], directory)

    def send_to(self, jaeger: Jaeger) -> None:
        """Send spans to this Jaeger from the next start on."""
        replaced = self._replaced | {"jaeger:4317": jaeger.otlp}
        write_replaced("collector/config.yaml", self._directory, replaced)


def free_address() -> str:
    """Return an address of loopback with a free port."""
    return f"127.0.0.1:{find_free_port()}"


def read_environment(replaced: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the service `whence` in compose.yaml, with values replaced.

    Raises:
        AssertionError: a value to replace is not there.
    """
    services = load_compose("compose.yaml")["services"]
    environment: dict[str, str] = _replace(services["whence"]["environment"], replaced)
    return environment


def write_replaced(name: str, directory: Path, replaced: Mapping[str, str]) -> str:
    """Write a file of deploy/ with values replaced, and its own metrics on a free port.

    Returns:
        The path of the file.

    Raises:
        AssertionError: a value to replace is not there, or something listens on all addresses.
    """
    document = load_yaml(name)
    for reader in _list_metric_readers(document):
        reader |= {"host": "127.0.0.1", "port": find_free_port()}
    document = _replace(document, replaced)
    path = directory / Path(name).name
    path.write_text(json.dumps(document))  # JSON is YAML
    assert EVERYWHERE not in path.read_text()
    return str(path)


def _list_metric_readers(document: dict[str, Any]) -> list[dict[str, Any]]:
    metrics = document.get("service", {}).get("telemetry", {}).get("metrics", {})
    return [reader["pull"]["exporter"]["prometheus"] for reader in metrics.get("readers", ())]


def _replace(document: Any, replaced: Mapping[str, str]) -> Any:
    used = set()

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        if isinstance(value, list):
            return [walk(item) for item in value]
        if value in replaced:
            used.add(value)
            return replaced[value]
        return value

    made = walk(document)
    assert used == replaced.keys(), "a value to replace is no longer in the file"
    return made
