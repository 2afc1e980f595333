"""The journal: an append-only log from which streams, watchers and exporters read."""

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
