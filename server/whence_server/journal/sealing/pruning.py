"""Destruction of keys that outlived their generations, after keys were restored from a copy."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.domain.journal_url import JournalUrl
from whence_server.journal.derive import PEEK_BYTES
from whence_server.journal.evidence import open_evidence
from whence_server.journal.sealing.key_store import KeyRows, KeyStore
from whence_server.journal.sealing.keyring import JOURNAL
from whence_server.journal.sealing.sealed_logs import read_journal_id
from whence_server.journal.sealing.stored_form import peek_key_id

_DELETED = "SELECT CAST(generation_id AS BLOB), deleted FROM generations"
_FIRST = f"""
    SELECT substr(e.payload, 1, {PEEK_BYTES}) FROM generations g
    JOIN entries e ON e.writer = g.writer AND e.position = g.started_position
    WHERE g.generation_id = ?
"""  # noqa: S608  # constants only


class Pruned(NamedTuple):
    """Result of a destruction of keys."""

    num_deleted: int
    """Number of destroyed keys of generations that are deleted on record, and of keys that their
    generations do not name."""
    num_unknown: int
    """Number of keys whose generations have no trace in the journal."""


def prune(database: KeyStore, journal: Path | JournalUrl, *, also_unknown: bool = False) -> Pruned:
    """Destroy the keys of generations that a journal has deleted.

    Args:
        database: the keys.
        journal: directory of the journal, or address of its database, which servers may use.
        also_unknown: whether to destroy the keys too whose generations have no trace in the
            journal: retention removed the record of their deletion, or the journal is an older
            one than the keys. No server may use the journal meanwhile.

    Raises:
        ConfigurationError: there is no journal, a server uses it, or it has other keys.
        JournalUnwritableError: the disk is full or failing; no key is destroyed.
    """
    keys = database.list_keys()
    with _open(journal, alone=also_unknown) as connection:
        if database.read_fact(JOURNAL) != read_journal_id(connection):
            raise ConfigurationError(f"{database.name} has the keys of another journal")
        is_deleted = {
            raw_id.decode(errors="replace"): bool(deleted)
            for raw_id, deleted in connection.execute(_DELETED)
        }
        gone = [key for key in keys if is_deleted.get(key[0])]
        gone += _list_unnamed(connection, [key for key in keys if is_deleted.get(key[0]) is False])
    unknown = [key for key in keys if key[0] not in is_deleted]
    doomed = gone + unknown if also_unknown else gone

    def change(rows: KeyRows) -> bool:
        rows.destroy_keys(doomed)
        return True

    database.write(change)
    return Pruned(len(gone), len(unknown))


def _list_unnamed(connection: Any, keys: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return the keys of generations with several that their STARTED entries do not name."""
    several: dict[str, list[bytes]] = {}
    for generation_id, key_id in keys:
        several.setdefault(generation_id, []).append(key_id)
    unnamed = []
    for generation_id, key_ids in several.items():
        if len(key_ids) > 1:
            rows = connection.execute(_FIRST, (generation_id,)).fetchall()
            named = peek_key_id(rows[0][0] or b"") if rows else b""
            unnamed += [(generation_id, it) for it in key_ids if named and it != named]
    return unnamed


@contextmanager
def _open(journal: Path | JournalUrl, *, alone: bool) -> Iterator[Any]:
    if isinstance(journal, Path):
        with open_evidence(journal) as evidence:
            yield evidence.connection
        return
    from whence_server.journal.open_store import import_postgres

    import_postgres()
    from whence_server.journal.postgres.copies import open_database

    with open_database(journal.text, exclusive=alone) as source:
        yield source.connection
