"""Table of the signing keys of all servers that share a journal's database.

The keys are public; the module `proof.key_board` reads and writes them.
"""

FIRST_SCHEMA = """
CREATE TABLE signing_keys (
    writer INTEGER PRIMARY KEY, -- of the log whose server signs with them
    keys BLOB NOT NULL -- whence.v1.GetKeysResponse, serialised
) STRICT;
"""
"""Migration that created it with a row for each server; old migrations are never edited."""

SCHEMA = """
CREATE TABLE told_keys (
    key_id BLOB NOT NULL,
    writer INTEGER NOT NULL, -- of the log whose server told it last
    place INTEGER NOT NULL, -- in that server's list
    active INTEGER NOT NULL, -- 1 if that server signs with it
    key BLOB NOT NULL, -- whence.v1.SigningKey, serialised
    PRIMARY KEY (key_id, writer)
) STRICT, WITHOUT ROWID;
DROP TABLE signing_keys;
"""
"""Migration to a row for each key: the number of a server that has ended is the next one's."""
