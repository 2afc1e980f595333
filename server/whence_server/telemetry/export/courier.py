"""Requests to one destination: made one at a time, counted, paced and logged."""

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
from whence_server.telemetry.export.stats import ExportStats, get_error_kind

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]
Unwanted: TypeAlias = Failed | TooLarge | Refused | TryAgain | Misconfigured
"""Answers that do not accept a request."""

MAX_ASKED_DELAY_S = 3_600.0
"""Longest delay in seconds that a destination may ask for."""


class Courier:
    """Sender of requests to one destination.

    Args:
        sink: the destination.
        envelope: makes requests of spans.
        stats: counts the outcomes.
        backoff: gives the delays between attempts.
        sleep: waits for a number of seconds.
        hide_words: log and show only the kind of each error, because its text may repeat content
            that was sent.
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
        """Make one request; an answer that rejects all of its spans counts as `Refused`."""
        self._stats.num_requests += 1
        try:
            outcome = await self._sink.export(self._envelope.make_request(spans))
        except Exception as error:  # noqa: BLE001 - a user's sink must not end the export
            return TryAgain(f"{type(error).__name__}: {error}")
        if isinstance(outcome, Accepted) and outcome.num_rejected >= len(spans) > 0:
            return Refused(f"PARTIAL_SUCCESS: all spans were rejected: {outcome.message}")
        return outcome

    async def is_taken(self, span: bytes) -> bool:
        """Send one span, and return whether the destination accepted it."""
        return isinstance(await self.attempt([span]), Accepted)

    async def hold(self, unwanted: Unwanted, *, takes_others: bool = False) -> None:
        """Wait before the next attempt, for the backoff's delay or a longer one of the destination.

        Args:
            unwanted: the answer to the last attempt.
            takes_others: True if the destination accepted other spans meanwhile.
        """
        stats, reason = self._stats, self.redact(unwanted.reason)
        delay_s = self._choose_delay_s(unwanted, takes_others=takes_others)
        stats.num_retries += 1
        stats.retrying = True
        stats.refusing = not isinstance(unwanted, TryAgain) and not takes_others
        stats.last_error = reason
        self._log_hold(reason, delay_s)
        await self._sleep(delay_s)

    def note_taken(self) -> None:
        """Note that the destination accepted the spans under delivery."""
        self.note_takes_others()
        self._stats.retrying = False
        self._told = ""

    def note_takes_others(self) -> None:
        """Note that the destination accepts spans, so that the next delays are short."""
        self._backoff.reset()
        self._stats.refusing = False
        if self._alarmed:
            self._alarmed = False
            logger.warning("the destination accepts spans again")

    def redact(self, reason: str) -> str:
        """Return the part of a reason that may be logged and shown."""
        return get_error_kind(reason) if self._hide_words else reason

    def _choose_delay_s(self, unwanted: Unwanted, *, takes_others: bool) -> float:
        if isinstance(unwanted, Misconfigured) and not takes_others:
            return self._backoff.choose_longest_s()
        asked_s = unwanted.delay_s if isinstance(unwanted, TryAgain | Failed) else None
        return self._backoff.choose_next_s(min(asked_s or 0.0, MAX_ASKED_DELAY_S))

    def _log_hold(self, reason: str, delay_s: float) -> None:
        """Log a warning for each new kind of error, and repetitions at level DEBUG."""
        new = get_error_kind(reason) != get_error_kind(self._told)
        self._told = reason
        if new and self._stats.refusing:
            self._alarmed = True
            logger.error(
                "the destination accepts no spans; all are held, next attempt in %.1f s: %s; "
                "check the endpoint, the protocol, the path and the headers",
                delay_s,
                reason,
            )
        else:
            level = logging.WARNING if new else logging.DEBUG
            logger.log(level, "spans are held, next attempt in %.1f s: %s", delay_s, reason)
