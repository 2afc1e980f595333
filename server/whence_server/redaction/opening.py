"""Choice of the detectors that the settings name."""

from collections.abc import Collection
from pathlib import Path

from whence_server.domain.redaction import KINDS
from whence_server.redaction.detectors import DETECTORS
from whence_server.redaction.patterns import read_patterns
from whence_server.redaction.stream import Detectors


def open_detectors(kinds: Collection[str], patterns: Path | None) -> Detectors:
    """Return the named detectors, and those of a file of own patterns.

    Own patterns come first: they name a range that both kinds find.

    Raises:
        ConfigurationError: the file or a pattern is unusable, or they are too large together.
    """
    own = [] if patterns is None else read_patterns(patterns, KINDS)
    return Detectors([*own, *(each for each in DETECTORS if each.kind in kinds)])
