"""Counters and state of one export: the one place that metrics, health page and log read."""

from collections import deque
from dataclasses import dataclass, field

_NUM_REMEMBERED = 8


@dataclass(slots=True)
class ExportStats:
    """Outcome of one export so far; only the exporter writes it. Counters begin at the start."""

    num_exported: int = 0
    """Spans that the destination has, rejected ones not counted."""
    num_requests: int = 0
    num_retries: int = 0
    num_rejected: int = 0
    """Spans that the destination said it did not take (OTLP's partial success)."""
    num_set_aside: int = 0
    """Spans that the destination refuses while it takes others, given up one by one."""
    num_unreadable: int = 0
    """Entries whose bytes made no span."""
    retrying: bool = False
    """The last attempt failed and will be repeated."""
    refusing: bool = False
    """The destination answers and takes nothing of what waits: all of it is held."""
    last_error: str = ""
    """The newest error, over or not; "" where there was none."""
    newest_set_aside: deque[str] = field(default_factory=lambda: deque(maxlen=_NUM_REMEMBERED))
    """Names and ids of the spans that were given up last."""


def error_kind(error: str) -> str:
    """Return an error's kind, without the words that follow: these may repeat what was sent.

    Args:
        error: KIND: WORDS, where the kind is a status, or an exception's name.
    """
    return error.partition(":")[0]
