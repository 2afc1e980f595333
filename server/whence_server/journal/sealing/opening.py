"""Joining of a store with the keys of its encrypted generations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from whence_server.domain.errors import ConfigurationError, RecordDamagedError
from whence_server.domain.key_sources import KeySource
from whence_server.journal.sealing.forms import CLEAR_FORMS, Forms
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.sealing.keyring import Keyring
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.sealed_store import SealedStore, has_sealed
from whence_server.journal.store import Store

FILE_NAME = "keys.db"


@dataclass(frozen=True, slots=True)
class SealingOptions:
    """Keys by which a journal's content is encrypted."""

    source: KeySource
    """Place of the master keys."""
    path: Path | None = None
    """Database of the data keys; None for `keys.db` in the data directory."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables, one of which may hold the master keys."""


def find_key_database(data_dir: Path, path: Path | None) -> Path:
    """Return the path of the database of keys."""
    return data_dir / FILE_NAME if path is None else path


def seal_store(store: Store, data_dir: Path, options: SealingOptions | None) -> tuple[Store, Forms]:
    """Return a store that encrypts with the keys of the options, and the forms of its entries.

    Without options, the store itself.

    Raises:
        ConfigurationError: the keys cannot be used, or are missing.
    """
    if options is None:
        _require_no_keys(store, data_dir)
        return store, CLEAR_FORMS
    masters = Masters(options.source, options.environment)
    path = find_key_database(data_dir, options.path)
    database = KeyDatabase(path, create=not path.exists())
    try:
        keys = Keyring(database, masters)
    except RecordDamagedError as error:
        database.close()
        raise ConfigurationError(f"{path} is damaged: {error.detail}") from error
    except BaseException:
        database.close()
        raise
    return SealedStore(store, keys), keys


def _require_no_keys(store: Store, data_dir: Path) -> None:
    """Refuse a journal with encrypted generations, because their keys are not given.

    Raises:
        ConfigurationError: it has some.
    """
    path = data_dir / FILE_NAME
    if not has_sealed(store) and not (path.exists() and _has_keys(path)):
        return
    raise ConfigurationError(
        f"the journal in {data_dir} has encrypted generations: give their master key with "
        "--journal-key, and their database of keys with --journal-keys if it is elsewhere"
    )


def _has_keys(path: Path) -> bool:
    database = KeyDatabase(path, read_only=True)
    try:
        return bool(database.count_by_master())
    finally:
        database.close()
