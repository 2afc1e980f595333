"""Requests to one destination: made one at a time, counted, paced, and told of in the log."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from whence_server.telemetry.export.backoff import Backoff
from whence_server.telemetry.export.outcomes import (
    Accepted,
    Failed,
    Misconfigured,
    Outcome,
    Refused,
    SpanSink,
    TooLarge,
    TryAgain,
)
from whence_server.telemetry.export.resource import Envelope
from whence_server.telemetry.export.stats import ExportStats, error_kind

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]
Unwanted: TypeAlias = Failed | TooLarge | Refused | TryAgain | Misconfigured
"""Answers by which a request was not taken."""

MAX_ASKED_DELAY_S = 3_600.0
"""No destination is left alone for longer, whatever it asks for."""


class Courier:
    """Makes the requests of one destination.

    Args:
        sink: where to.
        envelope: makes requests of spans.
        stats: counts what becomes of them.
        backoff: paces the attempts.
        sleep: takes seconds.
        hide_words: keep only the kind of each error: where the destination gets content, its
            words may repeat that.
    """

    def __init__(
        self,
        sink: SpanSink,
        envelope: Envelope,
        stats: ExportStats,
        backoff: Backoff,
        sleep: Sleep,
        *,
        hide_words: bool = False,
    ) -> None:
        self._sink = sink
        self._envelope = envelope
        self._stats = stats
        self._backoff = backoff
        self._sleep = sleep
        self._hide_words = hide_words
        self._told = ""
        self._alarmed = False

    async def attempt(self, spans: list[bytes]) -> Outcome:
        """Make one request. An answer that rejects all of its spans counts as a refusal."""
        self._stats.num_requests += 1
        try:
            outcome = await self._sink.export(self._envelope.request(spans))
        except Exception as error:  # noqa: BLE001 - a sink of the user's own must not end ours
            return TryAgain(f"{type(error).__name__}: {error}")
        if isinstance(outcome, Accepted) and outcome.num_rejected >= len(spans) > 0:
            return Refused(f"PARTIAL_SUCCESS: all spans were rejected: {outcome.message}")
        return outcome

    async def takes(self, span: bytes) -> bool:
        """Send one span, and says whether the destination took it."""
        return isinstance(await self.attempt([span]), Accepted)

    async def hold(self, unwanted: Unwanted, *, takes_others: bool = False) -> None:
        """Wait before the next attempt, as long as the backoff or the destination says.

        Args:
            unwanted: the answer to the last attempt.
            takes_others: the destination took other spans meanwhile.
        """
        stats, reason = self._stats, self.shown(unwanted.reason)
        delay_s = self._delay_s(unwanted, takes_others=takes_others)
        stats.num_retries += 1
        stats.retrying = True
        stats.refusing = not isinstance(unwanted, TryAgain) and not takes_others
        stats.last_error = reason
        self._tell(reason, delay_s)
        await self._sleep(delay_s)

    def has_taken(self) -> None:
        """Note that the destination took what is delivered."""
        self.takes_others()
        self._stats.retrying = False
        self._told = ""

    def takes_others(self) -> None:
        """Note that the destination takes spans after it was held: the next delays are short."""
        self._backoff.reset()
        self._stats.refusing = False
        if self._alarmed:
            self._alarmed = False
            logger.warning("the destination takes spans again")

    def shown(self, reason: str) -> str:
        """The reason as it may be logged and shown."""
        return error_kind(reason) if self._hide_words else reason

    def _delay_s(self, unwanted: Unwanted, *, takes_others: bool) -> float:
        if isinstance(unwanted, Misconfigured) and not takes_others:
            return self._backoff.longest_s()
        asked_s = unwanted.delay_s if isinstance(unwanted, TryAgain | Failed) else None
        return self._backoff.next_s(min(asked_s or 0.0, MAX_ASKED_DELAY_S))

    def _tell(self, reason: str, delay_s: float) -> None:
        """Log one line for each new kind of error: an hour of them fills no log."""
        new = error_kind(reason) != error_kind(self._told)
        self._told = reason
        if new and self._stats.refusing:
            self._alarmed = True
            logger.error(
                "the destination takes nothing that it is sent; all of it is held, next try in "
                "%.1f s: %s; check the endpoint, the protocol, the path and the headers",
                delay_s,
                reason,
            )
        else:
            level = logging.WARNING if new else logging.DEBUG
            logger.log(level, "spans are held back, next try in %.1f s: %s", delay_s, reason)
