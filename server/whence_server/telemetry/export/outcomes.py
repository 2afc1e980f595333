"""Answers of a destination to one export request, and the protocol of a destination."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias


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
        """Send a serialised opentelemetry ExportTraceServiceRequest and waits for the answer."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
