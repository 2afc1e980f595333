"""Logs of both processes: lines for people or JSON objects, with the ids of what they are about.

Nothing that is logged holds a prompt, an output or a token's text.
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
_about: ContextVar[Mapping[str, str]] = ContextVar("about", default=_NOTHING)


def configure(level: str, log_format: str) -> None:
    """Send the process's logs to standard error.

    Args:
        level: "debug", "info", "warning" or "error".
        log_format: one of `FORMATS`.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_ids)
    handler.setFormatter(_json_formatter() if log_format == "json" else _ConsoleFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Put ids on all that is logged inside, by this task and those that it starts."""
    token = _about.set({**_about.get(), **ids})
    try:
        yield
    finally:
        _about.reset(token)


def _add_ids(record: logging.LogRecord) -> bool:
    for name, value in _about.get().items():
        # What the line itself says of them goes before.
        record.__dict__.setdefault(name, value)
    return True


class _ConsoleFormatter(logging.Formatter):
    """2026-11-24 16:02:29,123 INFO    whence_server.app: message [generation_id=...]."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        ids = " ".join(f"{name}={getattr(record, name)}" for name in _IDS if hasattr(record, name))
        return super().formatMessage(record) + (f" [{ids}]" if ids else "")


def _json_formatter() -> logging.Formatter:
    """One object a line: timestamp (ISO 8601, UTC), level, logger, message, ids, exc_info."""
    return JsonFormatter(
        ["levelname", "name", "message", "processName"],
        rename_fields={"levelname": "level", "name": "logger", "processName": "process"},
        timestamp=True,
    )
