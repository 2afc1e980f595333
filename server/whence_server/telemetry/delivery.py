"""Brings a batch of spans to its destination, however long that takes."""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from whence_server.telemetry.resource import Envelope
from whence_server.telemetry.seams import (
    Accepted,
    Misconfigured,
    Outcome,
    Refused,
    SpanSink,
    TryAgain,
)

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]


@dataclass(slots=True)
class ExportStats:
    """What became of the spans so far. For metrics; only the exporter writes it."""

    num_exported: int = 0
    """Spans that the destination has, rejected ones not counted."""
    num_requests: int = 0
    num_retries: int = 0
    num_rejected: int = 0
    """Spans that the destination said it did not take (OTLP's partial success)."""
    num_set_aside: int = 0
    """Spans that the destination will never take, given up one by one."""
    num_unreadable: int = 0
    """Entries whose bytes made no span."""
    last_error: str = ""


class Backoff:
    """Exponential delays with jitter, for ever.

    Args:
        initial_s: the first delay's upper end.
        maximum_s: every delay's upper end.
        jitter: gives a number in [0, 1).
    """

    def __init__(
        self,
        initial_s: float = 0.1,
        maximum_s: float = 30.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._initial_s = initial_s
        self._maximum_s = maximum_s
        self._jitter = jitter
        self._bound_s = initial_s

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Gives the next delay: half of the current bound, and up to half more by chance."""
        delay = self._bound_s * (1 + self._jitter()) / 2
        self._bound_s = min(2 * self._bound_s, self._maximum_s)
        return max(delay, at_least_s)

    def longest_s(self) -> float:
        """Goes to the longest delay at once."""
        self._bound_s = self._maximum_s
        return self.next_s()

    def reset(self) -> None:
        """Starts over: the destination has answered."""
        self._bound_s = self._initial_s


class Delivery:
    """Sends batches to a sink: retries what may be retried, and gives up on single spans only."""

    def __init__(
        self,
        sink: SpanSink,
        envelope: Envelope,
        stats: ExportStats,
        backoff: Backoff,
        sleep: Sleep,
    ) -> None:
        self._sink = sink
        self._envelope = envelope
        self._stats = stats
        self._backoff = backoff
        self._sleep = sleep

    async def deliver(self, spans: list[bytes]) -> None:
        """Returns once every span was taken, rejected or set aside.

        A refused batch is sent again in halves, in order, down to the spans that are refused
        by themselves: those are set aside, and the others arrive.
        """
        num_set_aside = self._stats.num_set_aside
        waiting = [spans]
        while waiting:
            part = waiting.pop()
            refusal = await self._send(part)
            if refusal is None:
                continue
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
            else:
                self._stats.num_set_aside += 1
                logger.debug("set aside: %s", ScopeSpans.FromString(part[0]).spans[0])
        num_set_aside = self._stats.num_set_aside - num_set_aside
        if num_set_aside:
            logger.error(
                "%d of %d spans were refused and are set aside: %s",
                num_set_aside,
                len(spans),
                self._stats.last_error,
            )

    async def _send(self, spans: list[bytes]) -> Refused | None:
        """Sends until there is an answer that counts: taken (None), or refused."""
        stats, request = self._stats, self._envelope.request(spans)
        while True:
            outcome = await self._attempt(request)
            match outcome:
                case Accepted(num_rejected=num_rejected, message=message):
                    self._backoff.reset()
                    if num_rejected or message:
                        stats.last_error = message
                        logger.warning(
                            "%d of %d spans were rejected: %s", num_rejected, len(spans), message
                        )
                    stats.num_rejected += num_rejected
                    stats.num_exported += len(spans) - num_rejected
                    return None
                case Refused(reason=reason):
                    self._backoff.reset()
                    stats.last_error = reason
                    return outcome
                case TryAgain(reason=reason, delay_s=delay_s):
                    await self._wait(reason, self._backoff.next_s(delay_s or 0.0))
                case Misconfigured(reason=reason):
                    await self._wait(reason, self._backoff.longest_s())

    async def _attempt(self, request: bytes) -> Outcome:
        self._stats.num_requests += 1
        try:
            return await self._sink.export(request)
        except Exception as error:  # noqa: BLE001 - a sink of the user's own must not end ours
            return TryAgain(f"{type(error).__name__}: {error}")

    async def _wait(self, reason: str, delay_s: float) -> None:
        stats = self._stats
        stats.num_retries += 1
        # One line for each new reason: a collector that is away for an hour fills no log.
        level = logging.DEBUG if reason == stats.last_error else logging.WARNING
        stats.last_error = reason
        logger.log(level, "spans are held back, next try in %.1f s: %s", delay_s, reason)
        await self._sleep(delay_s)
