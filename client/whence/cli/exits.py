"""Exit statuses of the command."""

from whence.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
    WhenceError,
)

OK = 0
FAILED = 1
USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130
BROKEN_PIPE = 141

EXITS = """\
exit status:
  0    done
  1    the generation failed, another caller ended it, or the server had an error
  2    the command line or the request is wrong: a bad value, an unknown generation
  3    no server could be reached
  130  interrupted (Ctrl-C); a running generation is cancelled on the server
  141  the reader of standard output closed it
"""


class UsageError(Exception):
    """Error of the command line: contradictory or impossible arguments."""


def exit_status(error: WhenceError) -> int:
    """Return the exit status of an error."""
    if isinstance(error, UnavailableError):
        return UNREACHABLE
    if isinstance(error, InvalidRequestError | NotFoundError | AlreadyExistsError):
        return USAGE
    return FAILED
