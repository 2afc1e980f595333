"""Destruction of keys that outlived their generations, after keys were restored from a copy."""

from pathlib import Path
from typing import NamedTuple

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.evidence import open_evidence
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.sealing.keyring import JOURNAL


class Pruned(NamedTuple):
    """Result of a destruction of keys."""

    num_deleted: int
    """Number of destroyed keys of generations that are deleted on record."""
    num_unknown: int
    """Number of keys whose generations have no trace in the journal."""


def prune(database: KeyDatabase, data_dir: Path, *, also_unknown: bool = False) -> Pruned:
    """Destroy the keys of generations that a journal has deleted.

    Args:
        database: the keys.
        data_dir: directory of the journal.
        also_unknown: whether to destroy the keys too whose generations have no trace in the
            journal: retention removed the record of their deletion, or the journal is an older
            one than the keys.

    Raises:
        ConfigurationError: there is no journal, a server uses it, or it has other keys.
        JournalUnwritableError: the disk is full or failing; no key is destroyed.
    """
    with open_evidence(data_dir) as evidence:
        for (journal_id,) in evidence.connection.execute("SELECT writer_id FROM writers"):
            if database.read_fact(JOURNAL) != journal_id:
                raise ConfigurationError(f"{database.path} has the keys of another journal")
        is_deleted = dict(
            evidence.connection.execute("SELECT generation_id, deleted FROM generations")
        )
    ids = database.list_ids()
    gone = [i for i in ids if is_deleted.get(i)]
    unknown = [i for i in ids if i not in is_deleted]
    database.destroy(gone + unknown if also_unknown else gone)
    return Pruned(len(gone), len(unknown))
