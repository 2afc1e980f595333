"""The server's Unix socket: nobody's is taken, nobody else may connect, only its own is removed."""

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
    """Listens where it is told to, as gRPC does."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.mode_at_first = 0

    def __call__(self, path: str) -> None:
        self.socket.bind(path)
        self.mode_at_first = stat.S_IMODE(os.stat(path).st_mode)  # noqa: PTH116 - as gRPC is given it
        self.socket.listen()

    def accepts(self, path: Path) -> bool:
        """Whether it is this listener that a client of the path comes to."""
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
    """A path short enough for a socket, in a private directory."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o700)
    return Path("s")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o777])
def test_its_mode_is_the_asked_one_from_the_first_moment(
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


def test_whoever_listens_keeps_the_path(path: Path, listener: Listener) -> None:
    first = UnixSocket(str(path), 0o600)
    first.bind(listener)
    other = Listener()
    second = UnixSocket(str(path), 0o600)
    with other.socket, pytest.raises(ConfigurationError, match="another process listens there"):
        second.bind(other)
    second.remove()
    assert listener.accepts(path)


def test_a_dead_servers_socket_is_replaced(path: Path, listener: Listener) -> None:
    dead = Listener()
    with dead.socket:
        dead(str(path))
    assert path.is_socket()
    UnixSocket(str(path), 0o600).bind(listener)
    assert listener.accepts(path)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_what_is_no_socket_is_left_as_it_is(path: Path, listener: Listener, kind: str) -> None:
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
    with pytest.raises(ConfigurationError, match="something else than a socket is there"):
        unix_socket.bind(listener)
    unix_socket.remove()
    assert path.lstat() == before


def test_only_its_own_socket_is_removed(path: Path, listener: Listener) -> None:
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


def test_of_two_that_start_at_once_one_listens(path: Path) -> None:
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


def test_a_directory_that_others_write_to_is_warned_of(
    path: Path, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    Path.cwd().chmod(0o777)
    with caplog.at_level(logging.WARNING):
        UnixSocket(str(path), 0o600).bind(listener)
    assert "other users may write to its directory" in caplog.text


def test_a_private_directory_is_not_warned_of(
    path: Path, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        UnixSocket(str(path), 0o600).bind(listener)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("where", "words"),
    [("x" * 108, "at most 107 bytes"), ("nowhere/s", "No such file")],
)
def test_paths_that_can_hold_no_socket(
    path: Path, listener: Listener, where: str, words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        UnixSocket(str(path.parent / where), 0o600).bind(listener)


def test_a_listener_that_fails_leaves_nothing(path: Path) -> None:
    def fail(_path: str) -> None:
        raise ConfigurationError("no")

    unix_socket = UnixSocket(str(path), 0o600)
    with pytest.raises(ConfigurationError, match="no"):
        unix_socket.bind(fail)
    unix_socket.remove()
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("address", ["unix-abstract:name", "unix-abstract:1", "unix:a\0b", "unix:"])
def test_addresses_of_no_path_are_refused(address: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(address)
