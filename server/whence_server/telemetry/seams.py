"""What telemetry needs of its neighbours: a journal to read, and somewhere to send."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from whence_server.domain.entries import Entry, EntryKind


class FollowedJournal(Protocol):
    """The journal, as whoever follows what is committed reads it."""

    @property
    def committed_position(self) -> int:
        """The newest committed entry's position; 0 in an empty log."""
        ...

    async def read_committed(self, after_position: int, limit: int) -> list[Entry]:
        """Reads the next committed entries of this writer's log, in order."""
        ...

    async def wait_committed(self, after_position: int) -> None:
        """Returns once something is committed beyond the position."""
        ...

    async def read(
        self,
        generation_id: str,
        after_offset: int,
        limit: int,
        kinds: Collection[EntryKind] | None,
    ) -> list[Entry]:
        """Reads a generation's next entries of these kinds, by ascending offset.

        Raises:
            GenerationNotFoundError: it is not known, or was deleted.
        """
        ...


class SpanJournal(FollowedJournal, Protocol):
    """The journal, as the exporter reads it: with a cursor that outlives the process."""

    async def cursor(self, name: str) -> int:
        """Gives the position that a cursor has reached; 0 for a new one."""
        ...

    def advance(self, name: str, position: int) -> None:
        """Moves a cursor; durable with the next commit."""
        ...


@dataclass(frozen=True, slots=True)
class Accepted:
    """The destination has the spans, but for those that it says it rejected."""

    num_rejected: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Nothing was said against these spans: they are to be sent again."""

    reason: str
    delay_s: float | None = None
    """How long the destination wants to be left alone, where it said so."""


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The destination takes nothing from us, whatever it is, until somebody mends that."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The destination broke over this request: its own fault more often than the spans'."""

    reason: str
    delay_s: float | None = None
    """How long the destination wants to be left alone, where it said so."""


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The destination takes no request of this size; in smaller ones, it may take the spans."""

    reason: str
    certain: bool = True
    """False: the answer may speak of the destination's load, too."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination will never take this request; part of it, it may."""

    reason: str


Outcome: TypeAlias = Accepted | TryAgain | Misconfigured | Failed | TooLarge | Refused


class SpanSink(Protocol):
    """Where spans go. What it raises counts as `TryAgain`."""

    async def export(self, request: bytes) -> Outcome:
        """Sends a serialised opentelemetry ExportTraceServiceRequest and waits for the answer."""
        ...

    async def close(self) -> None:
        """Lets go of connections."""
        ...
