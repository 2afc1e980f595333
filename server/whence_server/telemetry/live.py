"""State of the running server that the health page and the metrics read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from whence_server.domain.errors import JournalError
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.lag import Lag


class LiveJournal(Protocol):
    """State of the journal's files."""

    @property
    def size_bytes(self) -> int:
        """Size on disk in bytes, including the write-ahead log."""
        ...

    @property
    def trouble(self) -> JournalError | None:
        """Error that prevents writes at present; None if the journal can be written."""
        ...


class LiveEngine(Protocol):
    """Handle on the engine process."""

    @property
    def state(self) -> str:
        """Name of the engine's state, e.g. "ready"."""
        ...

    @property
    def pid(self) -> int | None:
        """Process id of the engine; None while no process runs."""
        ...


class LiveActivity(Protocol):
    """Work of the engine after its latest turn, counted over all its processes."""

    @property
    def batch_size(self) -> int:
        """Sequences that took a step in the latest turn; 0 if none run."""
        ...

    @property
    def num_cache_tokens(self) -> int:
        """Positions of the key-value cache in use, including padding."""
        ...

    @property
    def num_prefix_tokens(self) -> int:
        """Positions in the prefix cache."""
        ...

    @property
    def num_prefill_chunks(self) -> int:
        """Chunks of prompts read since the server's start."""
        ...

    @property
    def num_restarts(self) -> int:
        """Number of times that the engine process was started again."""
        ...

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens a second over the last seconds."""
        ...


class LiveGenerations(Protocol):
    """Current state of the generations."""

    @property
    def num_running(self) -> int:
        """Number of generations that have started and not ended."""
        ...

    @property
    def num_unrecorded(self) -> int:
        """Number of generations that have been served without a record."""
        ...

    @property
    def num_waiting_sequences(self) -> int:
        """Number of sequences whose prompt the engine has not read completely."""
        ...

    @property
    def activity(self) -> LiveActivity:
        """Work of the engine."""
        ...


class LiveRetention(Protocol):
    """Counters and figures of retention."""

    @property
    def used_bytes(self) -> int:
        """Size of the pages of the journal's database that are in use, in bytes."""
        ...

    @property
    def num_held(self) -> int:
        """Number of generations under a hold."""
        ...

    @property
    def num_waiting(self) -> int:
        """Number of generations that are due and kept for an export."""
        ...

    @property
    def num_unread(self) -> int:
        """Number of generations deleted before every export had read them."""
        ...

    @property
    def num_deleted(self) -> Mapping[str, int]:
        """Number of generations deleted by retention, by cause: age or size."""
        ...


class LiveTransparency(Protocol):
    """Figures of the transparency log."""

    @property
    def size(self) -> int:
        """Number of entries in the published checkpoint."""
        ...

    @property
    def delay_s(self) -> float:
        """Seconds for which a checkpoint has waited to be published; 0 if none waits."""
        ...

    @property
    def failures(self) -> Mapping[str, int]:
        """Number of times that a witness did not cosign, by its name."""
        ...


class LiveServer:
    """Running parts of the server, for the health page and the metrics.

    It is made before the engine and the generations exist, and passed to the constructors of the
    health page and the metrics. The composition root adds the parts when they start.

    Args:
        journal: the journal's files.
        max_cache_tokens: number of positions that the key-value cache can hold.

    Attributes:
        engine: None until the engine process is started.
        generations: None until the model is loaded.
        retention: None until the journal is open for requests.
        transparency: None for a server that keeps no transparency log.
        refused: number of calls that were refused for want of authentication or scope, by cause.
        consumers: followers of the journal, by name.
    """

    def __init__(self, journal: LiveJournal, max_cache_tokens: int) -> None:
        self.journal = journal
        self.max_cache_tokens = max_cache_tokens
        self.engine: LiveEngine | None = None
        self.generations: LiveGenerations | None = None
        self.retention: LiveRetention | None = None
        self.transparency: LiveTransparency | None = None
        self.refused: Mapping[str, int] = {}
        self.consumers: Consumers = {}
        self._is_serving: Callable[[], bool] = lambda: False
        self._is_draining: Callable[[], bool] = lambda: False

    @property
    def is_serving(self) -> bool:
        """True while gRPC's health service answers SERVING."""
        return self._is_serving()

    @property
    def is_draining(self) -> bool:
        """True once the server was told to stop."""
        return self._is_draining()

    @property
    def num_restarts(self) -> int:
        """Number of times that the engine process was started again."""
        return 0 if self.generations is None else self.generations.activity.num_restarts

    @property
    def export_lag_s(self) -> float | None:
        """Seconds that the slowest export is behind the journal; None without an export."""
        exports = [it.lag().oldest_s for it in self.consumers.values() if it.export is not None]
        return max(exports, default=None)

    def show_start(
        self,
        engine: LiveEngine,
        is_serving: Callable[[], bool],
        is_draining: Callable[[], bool],
    ) -> None:
        """Add the engine, which is starting."""
        self.engine = engine
        self._is_serving, self._is_draining = is_serving, is_draining

    def show_generations(self, generations: LiveGenerations) -> None:
        """Add the generations; called once the model is loaded."""
        self.generations = generations


@dataclass(frozen=True, slots=True)
class Consumer:
    """Follower of the journal, as the health page and the metrics show it.

    Attributes:
        lag: returns the follower's distance from the newest committed entry.
        export: counters of a follower that exports; None for others.
    """

    lag: Callable[[], Lag]
    export: ExportStats | None = None


Consumers: TypeAlias = Mapping[str, Consumer]
"""Followers of the journal, by name."""
