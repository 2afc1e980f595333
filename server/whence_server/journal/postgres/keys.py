"""The database of wrapped data keys in PostgreSQL, which all servers of a journal share."""

import threading
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

from whence_server.domain.errors import ConfigurationError, JournalError, JournalUnreachableError
from whence_server.journal.postgres.connection import PostgresConnection, close_on_error
from whence_server.journal.postgres.errors import explain_for_operators, translate_errors
from whence_server.journal.postgres.reachability import Reachability
from whence_server.journal.sealing.key_store import KeyRows, KeyWrites, WrappedKey

P = ParamSpec("P")
T = TypeVar("T")

_FLAG = "--journal-keys"
_UNIQUE = "generation_id, key_id"
# A server that was paused may store a key after another has used the id: it gets another row.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (
    name BYTEA PRIMARY KEY,
    value BYTEA NOT NULL
);
CREATE TABLE IF NOT EXISTS data_keys (
    generation_id BYTEA NOT NULL,
    key_id BYTEA NOT NULL,
    master_id BYTEA NOT NULL, -- of the master key that wraps it
    wrapped BYTEA NOT NULL,
    doomed BIGINT NOT NULL DEFAULT 0, -- 1 while its generation is being deleted
    PRIMARY KEY (generation_id, key_id)
);
-- The planner keeps samples of columns, also after their rows are deleted.
ALTER TABLE data_keys ALTER COLUMN wrapped SET STATISTICS 0;
ALTER TABLE facts ALTER COLUMN value SET STATISTICS 0;
CREATE INDEX IF NOT EXISTS data_keys_doomed ON data_keys (generation_id) WHERE doomed = 1;
INSERT INTO facts VALUES ('version', '1') ON CONFLICT DO NOTHING;
"""
_VERSION = b"1"
# Any fixed number: servers that start at the same time take their turns.
_LOCK = 0x77686B7973
_BESIDE_OTHERS = "LOCK TABLE facts IN ROW EXCLUSIVE MODE"
_ALONE = "LOCK TABLE facts IN SHARE ROW EXCLUSIVE MODE"


class PostgresKeys(KeyWrites):
    """Keys of one journal in two tables; its methods may be called from any thread."""

    def __init__(self, url: str, *, create: bool = False) -> None:
        """Connect, and create the tables if they may be created.

        Raises:
            ConfigurationError: the database cannot be reached or used, has no keys, or keys of a
                newer version.
        """
        self._url = url
        self._write_lock, self._read_lock = threading.Lock(), threading.Lock()
        self._reading: PostgresConnection | None = None
        self._reachability = Reachability()
        try:
            connection = self._connect_to_write()
            with close_on_error(connection):
                self.name = f"{connection.filename}, schema {_read_schema(connection)!r}"
                if create:
                    _create(connection)
                self._check_version(connection)
        except JournalError as error:
            raise ConfigurationError(
                f"the database of {_FLAG} cannot be used: {explain_for_operators(error)}"
            ) from error
        self._writing: PostgresConnection | None = connection

    def _check_version(self, connection: PostgresConnection) -> None:
        if not _has_tables(connection):
            raise ConfigurationError(f"there are no keys in {self.name}")
        version = KeyRows(connection, _UNIQUE).get_fact("version")
        if version != _VERSION:
            raise ConfigurationError(
                f"the keys in {self.name} have version {(version or b'').decode()!r}, and this "
                f"server supports {_VERSION.decode()!r}: start the newer server that wrote them"
            )

    # ---- reading ----

    def read_fact(self, name: str) -> bytes | None:
        """Return a stored fact; None if there is none."""
        return self._read(KeyRows.get_fact, name)

    def find(self, generation_id: str) -> list[WrappedKey]:
        """Return a generation's keys: those of starts that were never committed among them."""
        return self._read(KeyRows.find, generation_id)

    def count_by_master(self) -> dict[str, int]:
        """Return the number of data keys under each master key, by its id."""
        return self._read(KeyRows.count_by_master)

    def list_doomed(self) -> list[str]:
        """Return the ids of generations whose deletion was interrupted, or is in progress."""
        return self._read(KeyRows.list_doomed)

    def list_keys(self) -> list[tuple[str, bytes]]:
        """Return the generation's id and the key's id of every key."""
        return self._read(KeyRows.list_keys)

    def read_all(self) -> list[WrappedKey]:
        """Return all keys."""
        return self._read(KeyRows.read_all)

    def _read(
        self, method: Callable[Concatenate[KeyRows, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        with self._read_lock:
            try:
                return method(self._get_rows(), *args, **kwargs)
            except JournalUnreachableError:
                # The session may have ended long ago, while nobody used it.
                return method(self._get_rows(), *args, **kwargs)

    def _get_rows(self) -> KeyRows:
        if self._reading is None or self._reading.is_broken:
            self._reading = self._reachability.connect(lambda: PostgresConnection(self._url))
        return KeyRows(self._reading, _UNIQUE)

    # ---- writing ----

    def write(self, change: Callable[[KeyRows], bool], *, exclusive: bool = False) -> bool:
        """Call a function with the rows in one transaction, as `KeyStore.write`.

        Raises:
            JournalUnwritableError: the database is away, full or busy; nothing is changed, or all
                of it: the function may be called again.
        """
        with self._write_lock:
            connection = self._get_writing()
            try:
                with connection:
                    # A rotation waits for the others: a key that it does not see is under the
                    # master key that it ends.
                    connection.execute(_ALONE if exclusive else _BESIDE_OTHERS)
                    _take_back_unless(change(KeyRows(connection, _UNIQUE)))
            except _TakenBackError:
                return False
        return True

    def _get_writing(self) -> PostgresConnection:
        if self._writing is None or self._writing.is_broken:
            self._writing = None
            self._writing = self._connect_to_write()
        return self._writing

    def _connect_to_write(self) -> PostgresConnection:
        connection = self._reachability.connect(lambda: PostgresConnection(self._url))
        with close_on_error(connection):
            # A key must survive whatever the entries that it encrypts survive.
            connection.execute(
                "SELECT set_config('synchronous_commit', 'on', false), "
                "set_config('lock_timeout', '5s', false), "
                "set_config('idle_in_transaction_session_timeout', '10s', false)"
            )
        return connection

    def close(self) -> None:
        """End the sessions."""
        for connection in (self._reading, self._writing):
            if connection is not None:
                connection.close()


class _TakenBackError(Exception):
    """End of a transaction without a commit."""


def _take_back_unless(done: bool) -> None:
    if not done:
        raise _TakenBackError


def _read_schema(connection: PostgresConnection) -> str:
    ((name,),) = connection.execute("SELECT current_schema()").fetchall()
    return str(name)


def _has_tables(connection: PostgresConnection) -> bool:
    ((found,),) = connection.execute("SELECT to_regclass('data_keys') IS NOT NULL").fetchall()
    return bool(found)


def _create(connection: PostgresConnection) -> None:
    """Create the tables, unless they are there: a user may be allowed to use them alone."""
    connection.execute("SELECT pg_advisory_lock(?)", (_LOCK,))
    try:
        if not _has_tables(connection):
            with connection, translate_errors():
                connection.raw.execute(_SCHEMA)
    finally:
        if not connection.is_broken:
            connection.execute("SELECT pg_advisory_unlock(?)", (_LOCK,))
