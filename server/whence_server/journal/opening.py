"""Opening a journal's directory: its lock, the modes of its files, its database."""

from collections.abc import Callable
from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.lock import DirectoryLock
from whence_server.journal.privacy import make_directory, make_private
from whence_server.journal.rows import Durability
from whence_server.journal.store import State, Store


def open_directory(
    data_dir: Path, durability: Durability, open_store: Callable[[Path, Durability], Store]
) -> tuple[DirectoryLock, Store, State]:
    """Lock a directory and open its database; create both if they do not exist.

    Raises:
        ConfigurationError: another server uses the directory, or its database cannot be used.
    """
    try:
        make_directory(data_dir)
        lock = DirectoryLock(data_dir)
    except OSError as error:
        raise ConfigurationError(f"the data directory cannot be used: {error}") from error
    try:
        _make_private(data_dir)
        store = open_store(data_dir / "journal.db", durability)
        return lock, store, store.load_state()
    except BaseException:
        lock.release()
        raise


def _make_private(data_dir: Path) -> None:
    try:
        make_private(data_dir)
    except OSError as error:
        raise ConfigurationError(f"the data directory cannot be used: {error}") from error
