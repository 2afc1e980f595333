"""Instrumentation scope of all telemetry of whence."""

from typing import Final

SCOPE: Final = "whence"
"""Name of the scope on spans, events and metrics."""
