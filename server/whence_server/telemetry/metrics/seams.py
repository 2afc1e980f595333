"""The live parts that the metrics look at."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from whence_server.telemetry.journal import Behind


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


class LiveEngine(Protocol):
    """The engine, as its latest turn left it."""

    @property
    def pid(self) -> int | None:
        """The engine's process; None while there is none."""
        ...

    @property
    def batch_size(self) -> int:
        """Sequences that took a step in the latest turn; 0 when nothing runs."""
        ...

    @property
    def num_cache_tokens(self) -> int:
        """Positions of the key-value cache that are spoken for, padding included."""
        ...

    @property
    def max_cache_tokens(self) -> int:
        """The most that there can be of them."""
        ...

    @property
    def num_prefill_chunks(self) -> int:
        """Pieces of prompts read since the server's start, over all engine processes."""
        ...

    @property
    def num_restarts(self) -> int:
        """How often the engine process was started again."""
        ...


class LiveJournal(Protocol):
    """The journal's files."""

    @property
    def size_bytes(self) -> int:
        """What they take on disk, the write-ahead log included."""
        ...


class ExportCounts(Protocol):
    """What became of spans so far; every number only grows."""

    @property
    def refusing(self) -> bool:
        """Whether the destination answers and takes nothing of what waits."""
        ...

    @property
    def num_exported(self) -> int:
        """Spans that the destination has."""
        ...

    @property
    def num_rejected(self) -> int:
        """Spans that the destination said it did not take."""
        ...

    @property
    def num_set_aside(self) -> int:
        """Spans that were given up, one by one."""
        ...

    @property
    def num_requests(self) -> int:
        """Requests made."""
        ...

    @property
    def num_retries(self) -> int:
        """How often spans were held back to be sent again."""
        ...

    @property
    def num_unreadable(self) -> int:
        """Entries that made no span."""
        ...


@dataclass(slots=True)
class LiveParts:
    """What can be looked at. A part that is not there (yet) has no series.

    Attributes:
        generations: set once the model is loaded.
        engine: the handle on the engine process.
        journal: its files.
        exports: by the consumer's name.
        non_finite: counts values of steps that no histogram can hold, by model and quantity.
        lags: how far a consumer of the journal is behind, by its name. The metrics' own cursor
            is among them by itself.
    """

    generations: LiveGenerations | None = None
    engine: LiveEngine | None = None
    journal: LiveJournal | None = None
    exports: dict[str, ExportCounts] = field(default_factory=dict)
    non_finite: Callable[[], Iterable[tuple[str, str, int]]] = list
    lags: dict[str, Callable[[], Behind]] = field(default_factory=dict)
