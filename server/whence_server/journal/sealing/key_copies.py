"""Copies of wrapped keys from one database of keys to another."""

from collections import Counter

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.sealing.key_place import KeyPlace, open_keys
from whence_server.journal.sealing.key_store import KeyRows, KeyStore, WrappedKey
from whence_server.journal.sealing.keyring import JOURNAL, LABEL_KEY, MASTER

_FACTS = (MASTER, JOURNAL, LABEL_KEY)


def copy_keys(source: KeyPlace, target: KeyPlace) -> int:
    """Copy all keys as they are, wrapped, to a database without keys; return their number.

    The marks of deletions that were interrupted are copied too: the next start ends these.

    Raises:
        ConfigurationError: a place cannot be used, the target has keys, or a generation has
            several.
        JournalUnwritableError: the target is away, full or failing; nothing is copied.
    """
    read = open_keys(source, read_only=True)
    try:
        facts, keys = _read(read)
        # Later than the keys: a mark that is set meanwhile is not missed.
        doomed = set(read.list_doomed())
        written = open_keys(target, create=True)
        try:
            _write(written, facts, keys, doomed)
        finally:
            written.close()
    finally:
        read.close()
    return len(keys)


def _read(database: KeyStore) -> tuple[dict[str, bytes], list[WrappedKey]]:
    facts = {name: value for name in _FACTS if (value := database.read_fact(name)) is not None}
    if MASTER not in facts:
        raise ConfigurationError(f"there are no keys in {database.name}")
    keys = database.read_all()
    counts = Counter(key.generation_id for key in keys)
    several = [generation_id for generation_id, number in counts.items() if number > 1]
    if several:
        raise ConfigurationError(
            f"generation {several[0]} has several keys in {database.name}, of which its record "
            "names one: destroy the others by `whence-server key prune`"
        )
    if database.read_fact(MASTER) != facts[MASTER]:
        raise ConfigurationError(f"the keys in {database.name} are being rotated: try again later")
    return facts, keys


def _write(
    database: KeyStore, facts: dict[str, bytes], keys: list[WrappedKey], doomed: set[str]
) -> None:
    def change(rows: KeyRows) -> bool:
        if rows.get_fact(MASTER) is not None:
            raise ConfigurationError(f"{database.name} has keys already: choose another place")
        for name, value in facts.items():
            rows.set_fact(name, value)
        rows.insert(keys)
        rows.set_doomed(doomed, doomed=True)
        return True

    database.write(change, exclusive=True)
