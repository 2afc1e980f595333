"""Places of a signing key's files, and the lock under which they change."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from whence_server.domain.errors import ConfigurationError


class KeyPlace(NamedTuple):
    """Files of one signing key.

    Servers may share a key outside their data directories. Then its rotations are listed beside it,
    where all of them look: the list of a data directory has what its own server began with.

    Attributes:
        key_path: file of the private key, or a link to it.
        own_list: the list in the server's data directory.
    """

    key_path: Path
    own_list: Path

    @property
    def key(self) -> Path:
        """File of the private key; a link is followed each time, as its target may change."""
        return self.key_path.resolve()

    @property
    def next_key(self) -> Path:
        """File of the next private key, while a rotation is under way."""
        return self._name(".next")

    @property
    def list(self) -> Path:
        """File of the list to read."""
        beside = self._name(".list")
        return beside if beside.exists() else self.own_list

    @property
    def rotated_list(self) -> Path:
        """File of the list to write at a rotation."""
        is_own = self.key.parent == self.own_list.parent.resolve()
        return self.list if is_own else self._name(".list")

    def read_stamp(self) -> tuple[object, ...]:
        """Return what differs after a change of the key or its list."""
        return tuple((str(path), *_stamp(path)) for path in (self.list, self.key))

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Keep starts and rotations of other processes out; yield whether they are.

        They are not where this process cannot write to the key's directory: it only reads there.

        Raises:
            ConfigurationError: the lock fails.
        """
        path = self._name(".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield False
            return
        try:
            self._give_to_owner(descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                raise ConfigurationError(f"{path}: cannot be locked ({error.strerror})") from None
            yield True
        finally:
            os.close(descriptor)

    def _give_to_owner(self, descriptor: int) -> None:
        """Give a lock that the administrator made to the key's owner, whose server needs it."""
        with suppress(OSError):
            owner = self.key.stat()
            if os.fstat(descriptor).st_uid != owner.st_uid:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)

    def _name(self, ending: str) -> Path:
        key = self.key
        return key.with_name(key.name + ending)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
