"""Occurrences: what happens to a running generation besides its own events."""

from dataclasses import dataclass
from typing import TypeAlias

from whence_server.domain.errors import Code
from whence_server.domain.tracing import TraceContext


@dataclass(frozen=True, slots=True)
class Caller:
    """A call, and the address that it came from."""

    method: str
    """Fully qualified, as in "whence.v1.GenerationService/CancelGeneration"."""
    trace_context: TraceContext
    address: str
    """IP address at the other end of the connection; "unix" for a Unix socket."""
    port: int | None = None
    identity: str = ""
    """Id of the caller; "" without authentication."""


@dataclass(frozen=True, slots=True)
class ReaderLeft:
    """End of a call that read the generation while it was running."""

    caller: Caller
    last_offset: int
    """Last offset that was written to the connection."""
    status: Code
    num_readers: int
    """Number of calls that still read the generation."""


@dataclass(frozen=True, slots=True)
class ReaderJoined:
    """Begin of a call that reads the generation, besides the one that started it."""

    caller: Caller
    after_offset: int
    num_readers: int
    """Number of calls that read the generation now."""


@dataclass(frozen=True, slots=True)
class EngineEnded:
    """End of the engine process."""

    detail: str


@dataclass(frozen=True, slots=True)
class EngineResumed:
    """Continuation of the generation by a new engine process."""


@dataclass(frozen=True, slots=True)
class CancelledByCall:
    """Cancellation of the generation by a call of CancelGeneration."""

    caller: Caller


@dataclass(frozen=True, slots=True)
class CancelledWithoutReader:
    """Cancellation of the generation because no call read it."""

    seconds: float
    """Time for which no call had read it."""


@dataclass(frozen=True, slots=True)
class MaxDurationPassed:
    """Passing of the request's `max_duration`."""

    seconds: float


Happening: TypeAlias = (
    ReaderLeft
    | ReaderJoined
    | EngineEnded
    | EngineResumed
    | CancelledByCall
    | CancelledWithoutReader
    | MaxDurationPassed
)


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Something that happened to a generation, with its time."""

    time_ns: int
    """Unix time in ns."""
    num_steps: int
    """Number of steps of all sequences recorded before; of rounds, for a running beam search."""
    happening: Happening
