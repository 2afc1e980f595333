"""Destruction of keys that outlived their generations, after keys were restored from a copy."""

from pathlib import Path

from whence_server.domain.errors import ConfigurationError
from whence_server.journal.evidence import open_evidence
from whence_server.journal.sealing.key_database import KeyDatabase
from whence_server.journal.sealing.keyring import JOURNAL


def prune(database: KeyDatabase, data_dir: Path) -> int:
    """Destroy the keys of generations that a journal has deleted; return their number.

    Raises:
        ConfigurationError: there is no journal, a server uses it, or it has other keys.
        JournalUnwritableError: the disk is full or failing; no key is destroyed.
    """
    with open_evidence(data_dir) as evidence:
        for (journal_id,) in evidence.connection.execute("SELECT writer_id FROM writers"):
            if database.read_fact(JOURNAL) != journal_id:
                raise ConfigurationError(f"{database.path} has the keys of another journal")
        deleted = evidence.connection.execute(
            "SELECT generation_id FROM generations WHERE deleted = 1"
        )
        gone = [generation_id for (generation_id,) in deleted if database.find(generation_id)]
    database.destroy(gone)
    return len(gone)
