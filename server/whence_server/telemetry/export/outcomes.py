"""Outcomes of one export request, and the protocol of a destination."""

from dataclasses import dataclass
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Accepted:
    """The destination accepted the spans, except those that it reports as rejected."""

    num_rejected: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class TryAgain:
    """The request failed for a reason other than its spans, and is to be sent again."""

    reason: str
    delay_s: float | None = None
    """Seconds to wait before the next attempt, if the destination asked for a delay."""


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """The destination accepts no request until the settings or the destination are changed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The destination failed on this request, seldom because of its spans."""

    reason: str
    delay_s: float | None = None
    """Seconds to wait before the next attempt, if the destination asked for a delay."""


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The destination accepts no request of this size, but may accept its spans in smaller ones."""

    reason: str
    certain: bool = True
    """False if the answer may as well mean that the destination is overloaded."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The destination will never accept this request, but may accept a part of it."""

    reason: str


Outcome: TypeAlias = Accepted | TryAgain | Misconfigured | Failed | TooLarge | Refused


class SpanSink(Protocol):
    """Destination of spans; its exceptions count as `TryAgain`."""

    async def export(self, request: bytes) -> Outcome:
        """Send a serialised ExportTraceServiceRequest, and wait for the answer."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...
