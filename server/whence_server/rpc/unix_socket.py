"""The server's Unix socket: it replaces no other listener's, and its mode holds from the start.

gRPC alone would replace the socket of another listener, leave the mode to the umask, and at its end
remove any file at the path. So gRPC binds a temporary name beside the path, under a umask, and the
socket is renamed to the path once it listens: it is never open to other users, and the path always
has a listener while it is replaced.
"""

import fcntl
import logging
import os
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from whence_server.domain.errors import ConfigurationError

_log = logging.getLogger(__name__)

MAX_PATH_BYTES = 107
"""Maximum length of a Unix socket's path (`man 7 unix`)."""
_LOCK_PATIENCE_S = 10.0
_CONNECT_PATIENCE_S = 2.0


class UnixSocket:
    """A path at which this process listens, from `bind` to `remove`.

    Args:
        path: path to which clients connect.
        mode: permissions of the socket; users with write permission can connect.
    """

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._parent = str(Path(path).parent)
        self._mode = mode
        self._directory = -1
        self._name = Path(path).name
        self._inode: tuple[int, int] | None = None

    def bind(self, listen: Callable[[str], object]) -> None:
        """Call `listen` with a temporary path, then rename that socket to the path.

        Raises:
            ConfigurationError: another process listens at the path, the path is not a socket, or
                no socket can be created there.
        """
        if len(os.fsencode(self._path)) > MAX_PATH_BYTES:
            raise self._make_error(
                f"a Unix socket's path has at most {MAX_PATH_BYTES} bytes, and this one has "
                f"{len(os.fsencode(self._path))}"
            )
        try:
            self._directory = os.open(self._parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._warn_of_others()
            with _hold_lock(self._directory):
                self._require_free()
                self._listen(listen)
        except (OSError, ValueError) as error:
            raise self._make_error(str(error)) from error

    def remove(self) -> None:
        """Remove the socket from its path, unless another file is there."""
        if self._inode is not None:
            with suppress(FileNotFoundError):
                if self._inode == self._get_inode(self._name):
                    os.unlink(self._name, dir_fd=self._directory)
            self._inode = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def _listen(self, listen: Callable[[str], object]) -> None:
        # Through the directory's descriptor, the path is short for every directory.
        name = f".{secrets.token_hex(4)}.sock"
        directory = f"/proc/self/fd/{self._directory}"
        if not Path(directory).is_dir():
            directory = self._parent
        umask = os.umask(0o777 & ~self._mode)
        try:
            listen(f"{directory}/{name}")
        finally:
            os.umask(umask)
        try:
            os.rename(name, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        except OSError:
            os.unlink(name, dir_fd=self._directory)
            raise
        self._inode = self._get_inode(self._name)

    def _require_free(self) -> None:
        """Raise unless the path is free or a socket without a listener."""
        try:
            there = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(there.st_mode):
            raise self._make_error("the path exists and is not a socket; choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_PATIENCE_S)
            try:
                probe.connect(self._path)
            except ConnectionRefusedError:
                return  # left behind by a server that was killed
            except FileNotFoundError:
                return
            except OSError as error:
                raise self._make_error(
                    f"cannot tell if a process listens on the socket: {error}"
                ) from (error)
        raise self._make_error("another process listens there; stop it, or choose another path")

    def _warn_of_others(self) -> None:
        directory = os.fstat(self._directory)
        writable = directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if writable or directory.st_uid not in (0, os.geteuid()):
            _log.warning(
                "--listen unix:%s: other users may write to its directory (mode %04o, owner %d), "
                "and so can put a socket of their own in its place; use a directory of mode 0700",
                self._path,
                stat.S_IMODE(directory.st_mode),
                directory.st_uid,
            )

    def _get_inode(self, name: str) -> tuple[int, int]:
        found = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        return found.st_dev, found.st_ino

    def _make_error(self, why: str) -> ConfigurationError:
        return ConfigurationError(f"--listen unix:{self._path}: cannot listen there: {why}")


@contextmanager
def _hold_lock(directory: int) -> Iterator[None]:
    """Hold the directory's lock, so that of two starting servers the second finds the first.

    Raises:
        OSError: another process holds the lock for longer than the patience.
    """
    give_up = time.monotonic() + _LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        fcntl.flock(directory, fcntl.LOCK_UN)
