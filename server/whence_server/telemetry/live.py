"""The running server, as the health page and the metrics look at it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from whence_server.domain.errors import JournalError
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.lag import Lag


class LiveJournal(Protocol):
    """The journal's files."""

    @property
    def size_bytes(self) -> int:
        """Size on disk, the write-ahead log included."""
        ...

    @property
    def trouble(self) -> JournalError | None:
        """Reason why nothing can be put on record at present; None if it can."""
        ...


class LiveEngine(Protocol):
    """The handle on the engine process."""

    @property
    def state(self) -> str:
        """Name of what it is doing."""
        ...

    @property
    def pid(self) -> int | None:
        """The engine's process; None while there is none."""
        ...


class LiveActivity(Protocol):
    """Work of the engine, over all its processes, as its latest turn left it."""

    @property
    def batch_size(self) -> int:
        """Sequences that took a step in the latest turn; 0 when nothing runs."""
        ...

    @property
    def num_cache_tokens(self) -> int:
        """Positions of the key-value cache that are in use, padding included."""
        ...

    @property
    def num_prefill_chunks(self) -> int:
        """Pieces of prompts read since the server's start."""
        ...

    @property
    def num_restarts(self) -> int:
        """Number of times that the engine process was started again."""
        ...


class LiveGenerations(Protocol):
    """The generations, as they are right now."""

    @property
    def num_running(self) -> int:
        """Generations that have started and not ended."""
        ...

    @property
    def num_waiting_sequences(self) -> int:
        """Sequences whose prompt the engine has yet to read to its end."""
        ...

    @property
    def activity(self) -> LiveActivity:
        """Work of the engine."""
        ...


class LiveServer:
    """Parts of the server that can be looked at, from the start on.

    Made before the engine and the generations exist, and given to the constructors of the health
    page and the metrics. The composition root tells it what has come to life.

    Args:
        journal: its files.
        max_cache_tokens: the most positions that the key-value cache can hold.

    Attributes:
        engine: None until the engine process is started.
        generations: None until the model is loaded.
    """

    def __init__(self, journal: LiveJournal, max_cache_tokens: int) -> None:
        self.journal = journal
        self.max_cache_tokens = max_cache_tokens
        self.engine: LiveEngine | None = None
        self.generations: LiveGenerations | None = None
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

    def show_start(
        self,
        engine: LiveEngine,
        is_serving: Callable[[], bool],
        is_draining: Callable[[], bool],
    ) -> None:
        """Show the engine, while it starts and from then on."""
        self.engine = engine
        self._is_serving, self._is_draining = is_serving, is_draining

    def show_generations(self, generations: LiveGenerations) -> None:
        """Show the generations, once the model is loaded."""
        self.generations = generations


@dataclass(frozen=True, slots=True)
class Consumer:
    """A follower of the journal, as the health page and the metrics show it.

    Attributes:
        lag: returns its distance from the newest committed entry.
        export: counters, where it sends something away.
    """

    lag: Callable[[], Lag]
    export: ExportStats | None = None


Consumers: TypeAlias = Mapping[str, Consumer]
"""Followers of the journal, by name."""
