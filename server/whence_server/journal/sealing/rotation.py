"""Rotation: data keys are wrapped by another master key; no entry of the journal changes."""

from functools import partial

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.sealing.key_source import FLAG
from whence_server.journal.sealing.key_store import KeyRows, KeyStore, WrappedKey
from whence_server.journal.sealing.keyring import LABEL_KEY, MASTER
from whence_server.journal.sealing.master_keys import MasterKey
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.unwrapping import LABEL_CONTEXT, make_context

_BATCH = 500
_FIRST = ("", b"")


def rotate(database: KeyStore, masters: Masters) -> int:
    """Wrap every data key by the newest master key; return the number of those that were not.

    Servers may use the database: they wrap new keys by the newest master key from the first
    transaction on. After an interruption, a second call does the rest.

    Raises:
        ConfigurationError: a master key that wraps some of the keys is missing, or one of them is
            damaged.
    """
    database.write(partial(_make_current, masters), exclusive=True)
    number, last = 0, _FIRST
    while done := _rewrap_batch(database, masters, last):
        number += len(done)
        last = done[-1].generation_id, done[-1].key_id
    return number


def _make_current(masters: Masters, rows: KeyRows) -> bool:
    """Make the newest master key the one that wraps new keys and the key of labels."""
    before = rows.get_fact(MASTER)
    if before is None:
        return True  # The server that first uses the file writes its facts.
    if before.decode() != masters.newest.id:
        label_key = rows.get_fact(LABEL_KEY) or b""
        label_key = _rewrap(masters, before.decode(), label_key, LABEL_CONTEXT)
        rows.set_fact(LABEL_KEY, label_key)
        rows.set_fact(MASTER, masters.newest.id.encode())
    return True


def _rewrap_batch(
    database: KeyStore, masters: Masters, after: tuple[str, bytes]
) -> list[WrappedKey]:
    found: list[WrappedKey] = []

    def change(rows: KeyRows) -> bool:
        found[:] = rows.list_others(masters.newest.id, after, _BATCH)
        rows.rewrap([_rewrap_key(masters, key) for key in found])
        return True

    database.write(change)
    return found


def _rewrap_key(masters: Masters, key: WrappedKey) -> WrappedKey:
    context = make_context(key.generation_id, key.key_id)
    wrapped = _rewrap(masters, key.master_id, key.wrapped, context)
    return WrappedKey(key.generation_id, key.key_id, masters.newest.id, wrapped)


def _rewrap(masters: Masters, master_id: str, wrapped: bytes, context: bytes) -> bytes:
    master = masters.find(master_id)
    if master is None:
        raise ConfigurationError(
            f"{FLAG} {masters.source} does not give the master key {master_id}, which wraps keys "
            "of generations: add it below the new one"
        )
    return masters.newest.wrap(_unwrap(master, wrapped, context), context)


def _unwrap(master: MasterKey, wrapped: bytes, context: bytes) -> bytes:
    try:
        return master.unwrap(wrapped, context)
    except ValueError as error:
        raise ConfigurationError(
            f"a key of the database cannot be unwrapped by the master key {master.id}: {error}"
        ) from None
