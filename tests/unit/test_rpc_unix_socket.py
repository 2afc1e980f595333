"""The server's Unix socket: other listeners' sockets are kept, and others cannot connect."""

import logging
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from whence_server.domain.errors import ConfigurationError
from whence_server.rpc.server import parse_address
from whence_server.rpc.unix_socket import UnixSocket


class Listener:
    """Listener on a given path, as gRPC is."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.mode_at_first = 0

    def __call__(self, path: str) -> None:
        self.socket.bind(path)
        self.mode_at_first = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116 - as gRPC is given it
        self.socket.listen()

    def accepts(self, path: Path) -> bool:
        """Return whether a client of the path reaches this listener."""
        self.socket.settimeout(5)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            accepted, _ = self.socket.accept()
            accepted.close()
        return True


@pytest.fixture
def listener() -> Iterator[Listener]:
    made = Listener()
    with made.socket:
        yield made


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a path short enough for a socket, in a private directory."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o700)
    return Path("s")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777])
def test_socket_has_its_mode_from_the_first_moment(
    path: Path, listener: Listener, mode: int
) -> None:
    before = os.umask(0)
    try:
        UnixSocket(str(path), mode).bind(listener)
        assert os.umask(0) == 0, "the umask is as it was"
    finally:
        os.umask(before)
    assert listener.mode_at_first == mode
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert listener.accepts(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["s"]


def test_socket_of_a_running_listener_is_not_replaced(path: Path, listener: Listener) -> None:
    first = UnixSocket(str(path), 0o600)
    first.bind(listener)
    other = Listener()
    second = UnixSocket(str(path), 0o600)
    with other.socket, pytest.raises(ConfigurationError, match="another process listens there"):
        second.bind(other)
    second.remove()
    assert listener.accepts(path)


def test_socket_without_a_listener_is_replaced(path: Path, listener: Listener) -> None:
    dead = Listener()
    with dead.socket:
        dead(str(path))
    assert path.is_socket()
    UnixSocket(str(path), 0o600).bind(listener)
    assert listener.accepts(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_path_that_is_not_a_socket_is_not_changed(
    path: Path, listener: Listener, kind: str
) -> None:
    target = Path("precious")
    match kind:
        case "file":
            path.write_text("precious")
        case "directory":
            path.mkdir()
        case "link":
            target.write_text("precious")
            path.symlink_to(target)
        case "dangling link":
            path.symlink_to(target)
    before = path.lstat()
    unix_socket = UnixSocket(str(path), 0o600)
    with pytest.raises(ConfigurationError, match="the path exists and is not a socket"):
        unix_socket.bind(listener)
    unix_socket.remove()
    assert path.lstat() == before


def test_socket_of_another_listener_is_not_removed(path: Path, listener: Listener) -> None:
    first = UnixSocket(str(path), 0o600)
    first.bind(listener)
    path.unlink()
    other = Listener()
    with other.socket:
        second = UnixSocket(str(path), 0o600)
        second.bind(other)
        first.remove()
        assert other.accepts(path)
        second.remove()
        assert not path.exists()
        second.remove()


def test_one_of_two_concurrent_starts_listens(path: Path) -> None:
    for _ in range(10):
        listeners = [Listener() for _ in range(4)]
        refused: list[ConfigurationError] = []
        gate = threading.Barrier(len(listeners))

        def start(
            listener: Listener, gate: threading.Barrier, refused: list[ConfigurationError]
        ) -> None:
            gate.wait()
            try:
                UnixSocket(str(path), 0o600).bind(listener)
            except ConfigurationError as error:
                refused.append(error)

        threads = [threading.Thread(target=start, args=(each, gate, refused)) for each in listeners]
        with ExitStack() as stack:
            for listener in listeners:
                stack.enter_context(listener.socket)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(refused) == len(listeners) - 1
        path.unlink()


def test_directory_writable_by_others_is_logged_as_a_warning(
    path: Path, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    Path.cwd().chmod(0o777)
    with caplog.at_level(logging.WARNING):
        UnixSocket(str(path), 0o600).bind(listener)
    assert "other users may write to its directory" in caplog.text


def test_private_directory_logs_no_warning(
    path: Path, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        UnixSocket(str(path), 0o600).bind(listener)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("where", "words"),
    [("x" * 108, "at most 107 bytes"), ("nowhere/s", "No such file")],
)
def test_unusable_socket_paths_are_refused(
    path: Path, listener: Listener, where: str, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        UnixSocket(str(path.parent / where), 0o600).bind(listener)


def test_failed_listener_leaves_no_file(path: Path) -> None:
    def fail(_path: str) -> None:
        raise ConfigurationError("no")

    unix_socket = UnixSocket(str(path), 0o600)
    with pytest.raises(ConfigurationError, match="no"):
        unix_socket.bind(fail)
    unix_socket.remove()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("address", ["unix-abstract:name", "unix-abstract:1", "unix:a\0b", "unix:"])
def test_malformed_unix_addresses_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(address)
