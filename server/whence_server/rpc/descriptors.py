"""Limit of open files: raised as far as allowed, with a part that connections never use.

A process without free descriptors can accept no connection, start no engine and open no file.
Clients open connections, so their number is bounded below the limit.
"""

import logging
import resource

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 8_192
"""Maximum number of open connections for every limit of open files: each takes memory."""
_FEW = 4_096


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            _log.warning("cannot raise the limit of open files, %d: %s", soft, error)
    limit = 1 << 20 if soft == resource.RLIM_INFINITY else soft
    if limit < _FEW:
        _log.warning(
            "the limit of open files is %d, which allows %d connections; raise the hard limit "
            "(ulimit -Hn)",
            limit,
            compute_max_connections(limit),
        )
    return limit


def compute_max_connections(limit: int) -> int:
    """Return the maximum number of connections under a limit of open files.

    A quarter of the limit, from 64 to 512 descriptors, is reserved for the journal, restarts of
    the engine, the exporters, the metrics page and the records of training runs.
    """
    reserved = min(max(limit // 4, 64), 512)
    return max(min(limit - reserved, MAX_CONNECTIONS), 1)
