"""Log format of both processes: console lines or JSON objects, with trace and generation ids.

No log line holds a prompt, an output or a token's text.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

from pythonjsonlogger.json import JsonFormatter

FORMATS: Final = ("console", "json")
TRACE_ID: Final = "trace_id"
SPAN_ID: Final = "span_id"
GENERATION_ID: Final = "generation_id"
_IDS = (TRACE_ID, SPAN_ID, GENERATION_ID)
_NOTHING: Mapping[str, str] = MappingProxyType({})
_context_ids: ContextVar[Mapping[str, str]] = ContextVar("about", default=_NOTHING)


def configure(level: str, log_format: str) -> None:
    """Send the process's logs to standard error.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: one of `FORMATS`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_context_ids)
    handler.setFormatter(_make_json_formatter() if log_format == "json" else _ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("aiohttp.server").addFilter(_leave_malformed_requests_out)


@contextmanager
def add_ids(**ids: str) -> Iterator[None]:
    """Add ids to every line that is logged inside, by this task and the tasks that it starts."""
    token = _context_ids.set({**_context_ids.get(), **ids})
    try:
        yield
    finally:
        _context_ids.reset(token)


def _add_context_ids(record: logging.LogRecord) -> bool:
    for name, value in _context_ids.get().items():
        # An id that the call to the logger gave takes precedence.
        record.__dict__.setdefault(name, value)
    return True


def _leave_malformed_requests_out(record: logging.LogRecord) -> bool:
    """Return False for bytes that are no HTTP: strangers send them, and would fill the log."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__module__ != "aiohttp.http_exceptions"


class _ConsoleFormatter(logging.Formatter):
    """Format of console lines: `TIME LEVEL LOGGER: MESSAGE [generation_id=...]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        ids = " ".join(f"{name}={getattr(record, name)}" for name in _IDS if hasattr(record, name))
        return super().formatMessage(record) + (f" [{ids}]" if ids else "")


def _make_json_formatter() -> logging.Formatter:
    """Return a formatter of JSON lines: timestamp (ISO 8601, UTC), level, logger, message, ids."""
    return JsonFormatter(
        ["levelname", "name", "message", "processName"],
        rename_fields={"levelname": "level", "name": "logger", "processName": "process"},
        timestamp=True,
    )
