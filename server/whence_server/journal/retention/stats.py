"""Counters and figures of retention, for metrics and for the health page."""

from collections import Counter
from dataclasses import dataclass, field

from whence_server.domain.retention import DeletionCause

_CAUSES = (DeletionCause.AGE, DeletionCause.SIZE)


@dataclass(slots=True)
class RetentionStats:
    """State of retention in this process."""

    used_bytes: int = 0
    """Size of the database's pages in use; the others can be reused or given back."""
    num_held: int = 0
    """Generations under a hold."""
    num_waiting: int = 0
    """Generations past their age or size that are kept for an export that has not read them."""
    num_unread: int = 0
    """Generations deleted before every export had read them."""
    deleted: Counter[DeletionCause] = field(default_factory=Counter)
    """Generations deleted by retention, by cause."""

    @property
    def num_deleted(self) -> dict[str, int]:
        """Number of generations deleted by retention, by the name of their cause."""
        return {cause.name.lower(): self.deleted[cause] for cause in _CAUSES}
