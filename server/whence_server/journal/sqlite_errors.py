"""SQLite's errors as the journal's own.

What may go away by itself (a full disk, one that is read-only or out of order) is told apart
from what will not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

from whence_server.domain.errors import (
    JournalFullError,
    JournalUnwritableError,
    RecordDamagedError,
)

_PASSING = (
    apsw.IOError,
    apsw.ReadOnlyError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.CantOpenError,
    apsw.NoMemError,
    apsw.ProtocolError,
)


@contextmanager
def passing_faults() -> Iterator[None]:
    """Raise JournalUnwritableError for what may go away by itself; the rest as it is."""
    try:
        yield
    except apsw.FullError as error:
        raise JournalFullError("the disk is full") from error
    except _PASSING as error:
        raise JournalUnwritableError(type(error).__name__ + ": " + _first_line(error)) from error


@contextmanager
def readable() -> Iterator[None]:
    """Raise RecordDamagedError where the database itself is malformed; the rest as it is."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError, UnicodeDecodeError) as error:
        raise RecordDamagedError("", f"pages of the database are malformed ({error})") from error


def _first_line(error: apsw.Error) -> str:
    return str(error).splitlines()[0] if str(error) else "no detail"
