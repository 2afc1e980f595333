"""Schema as a list of numbered migrations in SQLite's SQL; old migrations are never edited.

`postgres.dialect` translates them: a journal in PostgreSQL has the same tables and versions.
"""

from typing import Any

from whence_server.domain.errors import ConfigurationError
from whence_server.journal import label_index, origin, shared_keys, tree_tables
from whence_server.journal.cursors import seal_cursors
from whence_server.journal.search import passages
from whence_server.journal.value_index import OWNERS, PARENTS

_INITIAL = """
CREATE TABLE writers (
    writer INTEGER PRIMARY KEY,
    writer_id BLOB NOT NULL UNIQUE -- a UUID's 16 bytes
) STRICT;

CREATE TABLE generations (
    generation_id TEXT PRIMARY KEY,
    writer INTEGER NOT NULL,
    started_position INTEGER NOT NULL, -- its STARTED entry: what its entries refer to
    secret BLOB, -- NULL once deleted
    trace_id TEXT NOT NULL,
    model TEXT NOT NULL,
    start_time_ns INTEGER NOT NULL,
    request_digest TEXT NOT NULL,
    labels TEXT NOT NULL, -- a JSON object
    prompt_preview TEXT NOT NULL,
    num_prompt_tokens INTEGER NOT NULL,
    finish_reason INTEGER, -- NULL while it runs
    num_generated_tokens INTEGER NOT NULL DEFAULT 0,
    text_preview TEXT NOT NULL DEFAULT '',
    deleted INTEGER NOT NULL DEFAULT 0,
    UNIQUE (writer, started_position)
) STRICT, WITHOUT ROWID;
CREATE INDEX generations_by_start ON generations (start_time_ns, generation_id) WHERE deleted = 0;
CREATE INDEX generations_by_trace ON generations (trace_id, start_time_ns) WHERE deleted = 0;
CREATE INDEX generations_running ON generations (writer) WHERE finish_reason IS NULL;

CREATE TABLE entries (
    writer INTEGER NOT NULL,
    position INTEGER NOT NULL,
    generation INTEGER NOT NULL, -- generations.started_position; 0 for none
    "offset" INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    payload BLOB, -- NULL once deleted
    inner_digest BLOB, -- in its place
    hash BLOB NOT NULL,
    PRIMARY KEY (writer, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX entries_by_generation ON entries (writer, generation, "offset", kind);

CREATE TABLE cursors (
    name TEXT PRIMARY KEY,
    position INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
"""

# `label_index` fills the index over labels before this migration, in slices. A cursor's seal is
# NULL only if there is no entry at its position. Deleted generations keep no finish reason.
_BOUND_COLUMNS = """
CREATE INDEX generations_by_model ON generations (model, start_time_ns, generation_id)
    WHERE deleted = 0;
ALTER TABLE cursors ADD COLUMN seal BLOB; -- binds it to the entry that it stands at
UPDATE generations SET finish_reason = 0 WHERE deleted = 1;
"""

# A database of several servers holds a log of each, with cursors of its own.
_CURSORS_OF_WRITERS = """
CREATE TABLE cursors_of_writers (
    writer INTEGER NOT NULL,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    seal BLOB, -- binds it to the entry that it stands at
    PRIMARY KEY (writer, name)
) STRICT, WITHOUT ROWID;
INSERT INTO cursors_of_writers SELECT 1, name, position, seal FROM cursors;
DROP TABLE cursors;
ALTER TABLE cursors_of_writers RENAME TO cursors;
"""

# Generations of earlier versions have no owner.
MIGRATIONS: tuple[str, ...] = (
    _INITIAL,
    _BOUND_COLUMNS,
    OWNERS.schema,
    origin.SCHEMA,
    _CURSORS_OF_WRITERS,
    tree_tables.SCHEMA,
    passages.SCHEMA,
    PARENTS.schema,
    shared_keys.FIRST_SCHEMA,
    shared_keys.SCHEMA,
    passages.OWNED_SCHEMA,
)
PARENTS_VERSION = MIGRATIONS.index(PARENTS.schema) + 1
"""First version with an index over the parents of branches."""
CURSORS_OF_WRITERS_VERSION = MIGRATIONS.index(_CURSORS_OF_WRITERS) + 1
"""First version whose cursors name the writer of their log."""
PASSAGES_VERSION = MIGRATIONS.index(passages.SCHEMA) + 1
"""First version with an index of texts."""
_PREPARATIONS = {2: label_index.prepare}
"""Functions that run before a migration, in their own transactions; may run repeatedly."""
_COMPLETIONS = {2: seal_cursors}
"""Functions that run in the transaction of a migration."""


def migrate(connection: Any, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Bring a database up to date, each migration in its own transaction.

    Raises:
        ConfigurationError: a newer version wrote the database; nothing is changed.
    """
    version = check_version(connection, migrations)
    for number, statements in enumerate(migrations[version:], start=version + 1):
        if number in _PREPARATIONS:
            _PREPARATIONS[number](connection)
        with connection:
            connection.execute(statements)
            if number in _COMPLETIONS:
                _COMPLETIONS[number](connection)
            connection.pragma("user_version", number)


def check_version(connection: Any, migrations: tuple[str, ...] = MIGRATIONS) -> int:
    """Return a database's schema version.

    Raises:
        ConfigurationError: a newer version wrote the database.
    """
    version: int = connection.pragma("user_version")
    if version > len(migrations):
        raise ConfigurationError(
            f"{connection.filename} has schema version {version}, and this server supports up to "
            f"{len(migrations)}: start the newer server that wrote it, or choose another --data-dir"
        )
    return version
