"""Table of the signing keys of all servers that share a journal's database.

The keys are public; the module `proof.key_board` reads and writes them.
"""

SCHEMA = """
CREATE TABLE signing_keys (
    writer INTEGER PRIMARY KEY, -- of the log whose server signs with them
    keys BLOB NOT NULL -- whence.v1.GetKeysResponse, serialised
) STRICT;
"""
"""Migration that creates it; old migrations are never edited."""
