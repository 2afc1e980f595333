"""Lock that lets only one server use a data directory."""

import fcntl
import os
from pathlib import Path

from whence_server.domain.errors import ConfigurationError


class DirectoryInUseError(ConfigurationError):
    """A server uses the data directory."""


class DirectoryLock:
    """flock on a file in the directory; the kernel releases it when the process ends."""

    def __init__(self, directory: Path) -> None:
        """Take the lock.

        Raises:
            DirectoryInUseError: another server holds it.
        """
        path = directory / "journal.lock"
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode(errors="replace") or "unknown"
            os.close(self._descriptor)
            raise DirectoryInUseError(
                f"another server (process {holder}) is using the data directory {directory}: "
                "stop it, or give this one its own --data-dir"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, str(os.getpid()).encode())

    def release(self) -> None:
        """Release the lock; calling it twice is allowed."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
