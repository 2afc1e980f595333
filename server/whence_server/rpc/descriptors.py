"""File descriptors: as many as the system allows, and some that connections never take.

A process that has none left can accept nobody, start no engine and open no file. Connections are
what others make it open, so they are bounded below the limit.
"""

import logging
import resource

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 8_192
"""Connections at once, however many descriptors there are: each takes memory too."""
_FEW = 4_096


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:
            _log.warning("the limit of open files stays at %d: %s", soft, error)
    limit = 1 << 20 if soft == resource.RLIM_INFINITY else soft
    if limit < _FEW:
        _log.warning(
            "this process may open %d files only, and so takes %d connections at most; raise the "
            "hard limit (ulimit -Hn)",
            limit,
            max_connections(limit),
        )
    return limit


def max_connections(limit: int) -> int:
    """Return how many connections to take under a limit of open files.

    A quarter of the limit, from 64 to 512 descriptors, is left to the journal, the engine's
    restarts, the exporters, the metrics page and the records of training runs.
    """
    reserved = min(max(limit // 4, 64), 512)
    return max(min(limit - reserved, MAX_CONNECTIONS), 1)
