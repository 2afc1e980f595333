"""An HTTP proxy from the environment: asked for other machines, never for this one."""

import socket
import threading
from collections.abc import Iterator

import pytest
from client_fake_server import FakeServer

import whence


class RecordingProxy:
    """A listening proxy that notes what it is asked for, and refuses it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self.asked: list[str] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4_096).decode().partition("\r\n")[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    running = RecordingProxy()
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, running.url)
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    yield running
    running.close()


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(address="127.0.0.1:0") as running:
        yield running


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST",
        "0.0.0.0",
        "[::ffff:127.0.0.1]",
        "dns:localhost",
        "dns:///localhost",
        "ipv4:127.0.0.1",
    ],
)
def test_a_server_on_this_machine_is_reached_without_the_proxy(server, proxy, host):
    port = server.target.rpartition(":")[2]
    with whence.Client(f"{host}:{port}") as client:
        assert client.models()
        assert client.generate("The").result().text
    assert proxy.asked == []


@pytest.mark.parametrize("host", ["unix-host.example", "127.example.com", "vsock.example"])
async def test_another_machine_is_reached_through_the_proxy(proxy, host):
    with whence.Client(f"{host}:1234", timeout_s=5) as client:
        with pytest.raises(whence.UnavailableError):
            client.models()
    async with whence.AsyncClient(f"{host}:1234", timeout_s=5) as client:
        with pytest.raises(whence.UnavailableError):
            await client.models()
    assert set(proxy.asked) == {f"CONNECT {host}:1234 HTTP/1.1"}
