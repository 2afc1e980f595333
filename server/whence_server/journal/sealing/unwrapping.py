"""Unwrapping of stored data keys by their master keys."""

from whence_server.journal.sealing.data_key import DataKey
from whence_server.journal.sealing.key_source import FLAG
from whence_server.journal.sealing.key_store import WrappedKey
from whence_server.journal.sealing.masters import Masters

LABEL_CONTEXT = b"whence label key 1"


class KeyMissingError(Exception):
    """A data key cannot be unwrapped; the message says why."""


def make_context(generation_id: str, key_id: bytes) -> bytes:
    """Return the bytes that bind a wrapped data key to its generation and its id."""
    return b"whence data key 1\0" + key_id + generation_id.encode()


def unwrap_key(masters: Masters, wrapped: WrappedKey) -> DataKey:
    """Return a data key.

    Raises:
        KeyMissingError: its master key is missing, or it was changed.
    """
    master = masters.find(wrapped.master_id)
    if master is None:
        raise KeyMissingError(
            f"its key is wrapped by the master key {wrapped.master_id}, which {FLAG} does not give"
        )
    context = make_context(wrapped.generation_id, wrapped.key_id)
    try:
        secret = master.unwrap(wrapped.wrapped, context)
    except ValueError as error:
        raise KeyMissingError(f"its key cannot be unwrapped: {error}") from None
    return DataKey(wrapped.generation_id, wrapped.key_id, secret)
