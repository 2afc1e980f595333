"""The SQLite schema, as a list of numbered steps that are never edited, only added to."""

from typing import Any

from whence_server.domain.errors import ConfigurationError

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

MIGRATIONS: tuple[str, ...] = (_INITIAL,)


def migrate(connection: Any, migrations: tuple[str, ...] = MIGRATIONS) -> None:
    """Brings a database up to date, each step in its own transaction.

    Raises:
        ConfigurationError: a newer version wrote it; nothing is changed.
    """
    version = connection.pragma("user_version")
    if version > len(migrations):
        raise ConfigurationError(
            f"{connection.filename} has schema version {version}, and this server knows up to "
            f"{len(migrations)}: start the newer server that wrote it, or choose another --data-dir"
        )
    for number, statements in enumerate(migrations[version:], start=version + 1):
        with connection:
            connection.execute(statements)
            connection.pragma("user_version", number)
