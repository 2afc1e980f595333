"""Rotation: data keys are wrapped by another master key; no entry of the journal changes."""

from functools import partial
from typing import Any

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.sealing.key_database import (
    KeyDatabase,
    WrappedKey,
    get_fact,
    list_other_keys,
    replace_wrapped,
    set_fact,
)
from whence_server.journal.sealing.key_source import FLAG
from whence_server.journal.sealing.keyring import LABEL_KEY, MASTER
from whence_server.journal.sealing.master_keys import MasterKey
from whence_server.journal.sealing.masters import Masters
from whence_server.journal.sealing.unwrapping import LABEL_CONTEXT, make_context

_BATCH = 500


def rotate(database: KeyDatabase, masters: Masters) -> int:
    """Wrap every data key by the newest master key; return the number of those that were not.

    A server may use the database: it wraps new keys by the newest master key from the first
    transaction on. After an interruption, a second call does the rest.

    Raises:
        ConfigurationError: a master key that wraps some of the keys is missing, or one of them is
            damaged.
    """
    database.write(partial(_make_current, masters))
    number = 0
    while done := _rewrap_batch(database, masters):
        number += done
    return number


def _make_current(masters: Masters, connection: Any) -> bool:
    """Make the newest master key the one that wraps new keys and the key of labels."""
    before = get_fact(connection, MASTER)
    if before is None:
        return True  # The server that first uses the file writes its facts.
    if before.decode() != masters.newest.id:
        label_key = get_fact(connection, LABEL_KEY) or b""
        label_key = _rewrap(masters, before.decode(), label_key, LABEL_CONTEXT)
        set_fact(connection, LABEL_KEY, label_key)
        set_fact(connection, MASTER, masters.newest.id.encode())
    return True


def _rewrap_batch(database: KeyDatabase, masters: Masters) -> int:
    number = 0

    def change(connection: Any) -> bool:
        nonlocal number
        found = list_other_keys(connection, masters.newest.id, _BATCH)
        replace_wrapped(connection, [_rewrap_key(masters, key) for key in found])
        number = len(found)
        return True

    database.write(change)
    return number


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
