"""The instrumentation scope of everything that whence emits."""

from typing import Final

SCOPE: Final = "whence"
"""Name of the scope on spans, events and metrics."""
