"""Opening a journal's directory: its lock, the modes of its files, its database, its keys."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.lock import DirectoryLock
from whence_server.journal.privacy import make_directory, make_private
from whence_server.journal.rows import Durability
from whence_server.journal.sealing.forms import Forms
from whence_server.journal.sealing.opening import SealingOptions, seal_store
from whence_server.journal.sharing.store import SharedStore
from whence_server.journal.store import State, Store

_log = logging.getLogger(__name__)

_MOST_DAMAGED = 8
"""Number of damaged logs that a server passes over at its start."""


class OpenedDirectory(NamedTuple):
    """A locked directory with its open store."""

    lock: DirectoryLock
    store: Store
    state: State
    forms: Forms


def open_directory(
    data_dir: Path,
    durability: Durability,
    open_store: Callable[[Path, Durability], Store],
    sealing: SealingOptions | None = None,
) -> OpenedDirectory:
    """Lock a directory and open its database; create both if they do not exist.

    Raises:
        ConfigurationError: another server uses the directory, or its database or keys cannot be
            used.
    """
    try:
        make_directory(data_dir)
        lock = DirectoryLock(data_dir)
    except OSError as error:
        raise ConfigurationError(f"the data directory cannot be used: {error}") from error
    try:
        _make_private(data_dir)
        return OpenedDirectory(lock, *_open_log(data_dir, durability, open_store, sealing))
    except BaseException:
        lock.release()
        raise


def _open_log(
    data_dir: Path,
    durability: Durability,
    open_store: Callable[[Path, Durability], Store],
    sealing: SealingOptions | None,
    num_more: int = _MOST_DAMAGED,
) -> tuple[Store, State, Forms]:
    """Open a log; in a shared database, pass over damaged ones: each server can have any log."""
    store = open_store(data_dir / "journal.db", durability)
    try:
        store, forms = seal_store(store, data_dir, sealing)
        try:
            return store, store.load_state(), forms
        except ConfigurationError as error:
            if not isinstance(store, SharedStore) or not num_more:
                raise
            _log.error("log number %d: %s; this server takes another log", store.writer, error)
        # It holds the damaged one meanwhile, and so is given another.
        found = _open_log(data_dir, durability, open_store, sealing, num_more - 1)
    except BaseException:
        store.close()
        raise
    store.close()
    return found


def _make_private(data_dir: Path) -> None:
    try:
        make_private(data_dir)
    except OSError as error:
        raise ConfigurationError(f"the data directory cannot be used: {error}") from error
