"""Counters and state of one export, which the metrics, the health page and the log read."""

from collections import deque
from dataclasses import dataclass, field

_NUM_REMEMBERED = 8


@dataclass(slots=True)
class ExportStats:
    """Counters and state of one export since the process's start, written by its exporter alone."""

    num_exported: int = 0
    """Spans that the destination accepted, without rejected ones."""
    num_requests: int = 0
    num_retries: int = 0
    num_rejected: int = 0
    """Spans that the destination reported as rejected (OTLP's partial success)."""
    num_set_aside: int = 0
    """Spans that were given up, because the destination refuses them and accepts others."""
    num_unreadable: int = 0
    """Entries that could not be encoded."""
    retrying: bool = False
    """True if the last attempt failed and will be repeated."""
    refusing: bool = False
    """True if the destination answers but accepts no spans, so that all are held."""
    last_error: str = ""
    """Newest error, also after its end; "" if there was none."""
    newest_set_aside: deque[str] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED))
    """Descriptions of the spans that were set aside last."""


def get_error_kind(error: str) -> str:
    """Return an error's kind without its text, which may repeat content that was sent.

    Args:
        error: KIND: TEXT, with a status or an exception's name as its kind.
    """
    return error.partition(":")[0]
