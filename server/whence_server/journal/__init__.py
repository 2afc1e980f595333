"""Everything that happens, appended once; every stream, watcher and exporter is a cursor on it."""

from whence_server.journal.chain import ChainReport
from whence_server.journal.journal import Journal
from whence_server.journal.rows import (
    Durability,
    FinishIndex,
    GenerationIndex,
    GenerationRow,
    ListFilter,
)

__all__ = [
    "ChainReport",
    "Durability",
    "FinishIndex",
    "GenerationIndex",
    "GenerationRow",
    "Journal",
    "ListFilter",
]
