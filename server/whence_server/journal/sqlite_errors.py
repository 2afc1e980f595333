"""Translation of SQLite's errors into the journal's errors.

Errors that may be temporary (a disk that is full, read-only or failing) get another class than
final ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from whence_server.domain.errors import (
    JournalFullError,
    JournalUnwritableError,
    RecordDamagedError,
)

_TRANSIENT = (
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.NoMemError,
    apsw.ProtocolError,
)


@contextmanager
def translate_transient_errors() -> Iterator[None]:
    """Raise JournalUnwritableError for SQLite errors that may be temporary."""
    try:
        yield
    except apsw.FullError as error:
        raise JournalFullError("the disk is full") from error
    except _TRANSIENT as error:
        raise JournalUnwritableError(
            type(error).__name__ + ": " + _find_first_line(error)
        ) from error


@contextmanager
def translate_corruption() -> Iterator[None]:
    """Raise RecordDamagedError for SQLite errors about a malformed database."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError) as error:
        raise RecordDamagedError("", f"pages of the database are malformed ({error})") from error


def _find_first_line(error: apsw.Error) -> str:
    return str(error).splitlines()[0] if str(error) else "no detail"
