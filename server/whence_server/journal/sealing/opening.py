"""Joining of a store with the keys of its encrypted generations."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from whence_server.domain.errors import ConfigurationError, RecordDamagedError
from whence_server.domain.key_sources import KeySource
from whence_server.journal.sealing.forms import CLEAR_FORMS, Forms
from whence_server.journal.sealing.key_place import FILE_NAME, KeyPlace, open_keys
from whence_server.journal.sealing.key_store import KeyStore
from whence_server.journal.sealing.keyring import JOURNAL, Keyring
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.sealed_shared_store import SealedSharedStore
from whence_server.journal.sealing.sealed_store import SealedStore
from whence_server.journal.sharing.store import SharedStore
from whence_server.journal.store import Store


@dataclass(frozen=True, slots=True)
class SealingOptions:
    """Keys by which a journal's content is encrypted."""

    source: KeySource
    """Place of the master keys."""
    place: KeyPlace | None = None
    """Database of the data keys; None for `keys.db` in the data directory."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables, one of which may hold the master keys."""


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
    place = data_dir / FILE_NAME if options.place is None else options.place
    with _opened(place) as database:
        _require_keys(store, database)
        try:
            keys = Keyring(database, masters)
        except RecordDamagedError as error:
            raise ConfigurationError(f"{database.name} is damaged: {error.detail}") from error
        keys.bind(store.read_journal_id())
    if not isinstance(store, SharedStore):
        sealed = SealedStore(store, keys)
        keys.read_key_id = sealed.read_key_id
        return sealed, keys
    joined = SealedSharedStore(store, keys)
    keys.read_key_id = joined.read_key_id
    # Servers would not see that they share it if a method were missing.
    shared: SharedStore = joined
    return shared, keys


KEYS_BESIDE_JOURNAL = (
    "the keys are in the journal's database: its backups and archives have them beside the "
    "content, also after a deletion; --journal-keys names another database (docs/encryption.md)"
)


@contextmanager
def _opened(place: KeyPlace) -> Iterator[KeyStore]:
    """Yield the database of keys; after an error, leave no file that was not there before."""
    is_new = isinstance(place, Path) and not place.exists()
    database = open_keys(place, create=is_new or not isinstance(place, Path))
    try:
        yield database
    except BaseException:
        database.close()
        if is_new and isinstance(place, Path):
            for path in (place, place.with_name(f"{place.name}-journal")):
                path.unlink(missing_ok=True)
        raise


def _require_keys(store: Store, database: KeyStore) -> None:
    """Refuse a new database of keys for a journal whose keys must be in another one."""
    if database.read_fact(JOURNAL) is None and store.has_sealed():
        raise ConfigurationError(
            f"{database.name} is new, and the journal has encrypted generations: their keys are "
            "in another place; give it with --journal-keys, or restore it"
        )


def _require_no_keys(store: Store, data_dir: Path) -> None:
    """Refuse a journal with encrypted generations, because their keys are not given.

    Raises:
        ConfigurationError: it has some.
    """
    path = data_dir / FILE_NAME
    is_shared = isinstance(store, SharedStore)
    if not store.has_sealed() and (is_shared or not path.exists() or not _has_keys(path)):
        return
    where = "the database of --journal" if is_shared else data_dir
    raise ConfigurationError(
        f"the journal in {where} has encrypted generations: give their master key with "
        "--journal-key, and their database of keys with --journal-keys if it is elsewhere"
    )


def _has_keys(path: Path) -> bool:
    database = open_keys(path, read_only=True)
    try:
        return bool(database.count_by_master())
    finally:
        database.close()
