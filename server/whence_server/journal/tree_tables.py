"""Tables of the transparency log, which the module `proof.log` reads and writes.

They hold digests and signatures, no content: a deletion leaves them as they are.
"""

SCHEMA = """
CREATE TABLE tree (
    id INTEGER PRIMARY KEY, -- 1: a database has one log
    origin BLOB NOT NULL, -- its name, which no checkpoint changes
    verifier_key BLOB NOT NULL, -- of the key that signs its checkpoints
    size INTEGER NOT NULL -- number of leaves
) STRICT;

CREATE TABLE tree_leaves (
    number INTEGER PRIMARY KEY, -- from 0 without gaps
    digest BLOB NOT NULL, -- the entry: SHA-256 of a statement's envelope
    writer INTEGER NOT NULL,
    position INTEGER NOT NULL, -- of the FINISHED entry
    UNIQUE (writer, position)
) STRICT;
CREATE INDEX tree_leaves_by_digest ON tree_leaves (digest);

CREATE TABLE tree_nodes (
    level INTEGER NOT NULL, -- of tiles: a node of level n has 256 of level n - 1 below it
    number INTEGER NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (level, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE tree_checkpoints (
    size INTEGER PRIMARY KEY,
    note BLOB NOT NULL, -- signed by the log
    published BLOB -- the same with the cosignatures; NULL while too few witnesses have cosigned
) STRICT;
"""
"""Migration that creates them; old migrations are never edited."""
