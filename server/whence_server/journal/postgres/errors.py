"""Translation of PostgreSQL's errors into the journal's errors.

Errors that may be temporary get another class than final ones: a lost connection, a server that
starts, stops or has become a standby, a full disk, a conflict of locks.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from whence_server.domain.errors import (
    JournalError,
    JournalFullError,
    JournalUnreachableError,
    JournalUnwritableError,
)

_LOST = ("08", "57P")
"""Beginnings of the codes of a lost connection and of a server that stops or starts."""
_TRANSIENT = (
    errors.ReadOnlySqlTransaction,
    errors.IdleInTransactionSessionTimeout,
    errors.InsufficientResources,
    psycopg.OperationalError,
)


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the journal's errors for PostgreSQL's."""
    try:
        yield
    except psycopg.Error as error:
        raise _translate(error) from error


def explain_for_operators(error: JournalError) -> str:
    """Return PostgreSQL's own message, which may name hosts and users, or else the error's."""
    cause = error.__cause__
    return _find_first_line(cause) if isinstance(cause, psycopg.Error) else str(error)


def _translate(error: psycopg.Error) -> JournalError:
    # Callers see these messages: hosts and users are in the cause alone, which is logged.
    code = error.sqlstate
    if isinstance(error, errors.DiskFull):
        return JournalFullError("the database's disk is full")
    # Without a code the error is the connection's; a closed one is an InterfaceError.
    is_lost = code is None and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    if is_lost or (code or "").startswith(_LOST):
        return JournalUnreachableError("there is no connection to PostgreSQL")
    if isinstance(error, _TRANSIENT):
        return JournalUnwritableError(f"PostgreSQL's error {code}")
    return JournalError(f"PostgreSQL: {_find_first_line(error)}")


def _find_first_line(error: psycopg.Error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
