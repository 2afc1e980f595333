"""Generations that retention deletes together: few enough that nobody waits for their commit."""

from whence_server.domain.retention import DeletionCause, DeletionRequest
from whence_server.journal.retention.judging import Action, Verdict
from whence_server.journal.retention.store import Candidate

BATCH_GENERATIONS, BATCH_ENTRIES = 32, 2_000


class Batch:
    """Candidates to delete, with the requests that put them on record.

    Attributes:
        candidates: in the order in which they were added.
        requests: by generation id.
        unread: ids of the candidates that an export has not read.
    """

    def __init__(self, max_entries: int = BATCH_ENTRIES) -> None:
        """Begin a batch that is full from a number of entries on."""
        self.candidates: list[Candidate] = []
        self.requests: dict[str, DeletionRequest] = {}
        self.unread: set[str] = set()
        self._num_entries = 0
        self._max_entries = max_entries

    def add(self, candidate: Candidate, cause: DeletionCause, verdict: Verdict) -> None:
        """Add a candidate, with the verdict on it."""
        generation_id = candidate.generation_id
        self.candidates.append(candidate)
        self.requests[generation_id] = DeletionRequest(generation_id, cause, rule=verdict.rule)
        if verdict.action is Action.DELETE_UNREAD:
            self.unread.add(generation_id)
        self._num_entries += candidate.num_entries

    @property
    def is_full(self) -> bool:
        """True if the batch is to be deleted before another candidate is added."""
        return len(self.candidates) >= BATCH_GENERATIONS or self._num_entries >= self._max_entries
