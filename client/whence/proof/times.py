"""Times in proofs: RFC 3339 in UTC."""

from datetime import UTC, datetime
from functools import lru_cache

from whence.proof.faults import FormatError


def spell_time(unix_ns: int) -> str:
    """Return a Unix time in nanoseconds as RFC 3339 text with microseconds."""
    return f"{_spell_second(unix_ns // 1_000_000_000)}.{unix_ns // 1_000 % 1_000_000:06d}Z"


# The generations that run together have few seconds.
@lru_cache(maxsize=64)
def _spell_second(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()[:19]


def read_time(text: str, where: str) -> datetime:
    """Return the time of an RFC 3339 text in UTC.

    Raises:
        FormatError: the text is something else.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise FormatError(f"{where} is no time: {text[:40]!r}") from None
    if not text.endswith("Z") or moment.tzinfo is None:
        raise FormatError(f"{where} is no time in UTC: {text[:40]!r}")
    return moment
