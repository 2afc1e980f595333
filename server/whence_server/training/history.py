"""What a record says so far, as far as a training that goes on with it has to know."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from whence.v1.training_pb2 import (
    Checkpoint,
    TrainingDataset,
    TrainingDocument,
    TrainingEvent,
    TrainingRunStarted,
)
from whence_server.lineage.reader import RecordedEvent


@dataclass(slots=True)
class History:
    """A run's record, folded."""

    started: TrainingRunStarted = field(default_factory=TrainingRunStarted)
    dataset: TrainingDataset | None = None
    documents: list[TrainingDocument] = field(default_factory=list)
    num_attempts: int = 0
    num_threads: str = ""
    """Of torch, in the newest attempt, as it is on record; "" where it is not."""
    checkpoints: list[Checkpoint] = field(default_factory=list)
    """In the order of the record, those of superseded steps included."""
    counting: list[Checkpoint] = field(default_factory=list)
    """The same without those."""
    tokens_seen: dict[int, int] = field(default_factory=lambda: {0: 0})
    """By the number of each step that counts."""

    @classmethod
    def of(cls, events: Iterable[RecordedEvent]) -> "History":
        """Folds a record."""
        history = cls()
        for recorded in events:
            history.take(recorded.event)
        return history

    def take(self, event: TrainingEvent) -> None:
        """Folds one more event in."""
        match event.WhichOneof("event"):
            case "started":
                self.started = event.started
            case "dataset":
                self.dataset = event.dataset
            case "documents":
                self.documents += event.documents.documents
            case "attempt_started":
                self.num_attempts = event.attempt_started.attempt
                self.num_threads = event.attempt_started.determinism.get("num_threads", "")
                resumed = event.attempt_started.resumed_step
                self.tokens_seen = {s: n for s, n in self.tokens_seen.items() if s <= resumed}
                self.counting = [c for c in self.counting if c.step <= resumed]
            case "step":
                self.tokens_seen[event.step.step] = event.step.num_tokens_seen
            case "checkpoint":
                self.checkpoints.append(event.checkpoint)
                self.counting.append(event.checkpoint)
            case _:
                pass

    def weights_digests_at(self, step: int) -> set[str]:
        """Of every checkpoint after so many steps; before the first, of the run's beginning."""
        if step == 0:
            return {self.started.initial_weights_digest}
        return {c.weights_digest for c in self.checkpoints if c.step == step}
