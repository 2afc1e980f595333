"""Delivery of batches of spans to a destination, with retries until it accepts them."""

import logging
import random
from collections.abc import Callable
from typing import TypeAlias

from whence_server.telemetry.export.backoff import Backoff
from whence_server.telemetry.export.courier import Courier, Sleep, Unwanted
from whence_server.telemetry.export.outcomes import Accepted, Failed, Refused, SpanSink, TooLarge
from whence_server.telemetry.export.resource import Envelope
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.export.trial import Others, Trial, Witnesses

logger = logging.getLogger(__name__)

Describe: TypeAlias = Callable[[bytes], str]
"""Function that describes an encoded span or event for the log."""

DEFAULT_PATIENCE = 20
DEFAULT_LONG_PATIENCE = 40


class Delivery:
    """Sender of batches to a sink, which gives up a span only if the span alone is at fault.

    - A batch that is refused or too large is split in halves and sent again at once, in order,
      down to single spans. A batch on which the destination fails is split after `patience`
      attempts; after other errors (no connection, no permission) after `long_patience` attempts.
    - A single span that is not accepted is at fault only if the destination accepts other, new
      spans right before and after it, many times in a row (`Trial`). It is then set aside.
    - Otherwise the destination accepts nothing, whatever its answer is. All spans are held, and
      single spans are sent at intervals until one is accepted.

    Args:
        sink: the destination.
        envelope: makes requests of spans.
        stats: counts the outcomes.
        backoff: gives the delays between attempts.
        sleep: waits for a number of seconds.
        describe: describes a span that is set aside, for the log.
        patience: attempts on which the destination fails before a batch is split.
        long_patience: attempts that end in other errors before a batch is split.
        hide_words: log and show only the kind of each error, because its text may repeat content
            that was sent.
        chance: source of random numbers.
    """

    def __init__(
        self,
        sink: SpanSink,
        envelope: Envelope,
        stats: ExportStats,
        backoff: Backoff,
        sleep: Sleep,
        *,
        describe: Describe,
        patience: int = DEFAULT_PATIENCE,
        long_patience: int = DEFAULT_LONG_PATIENCE,
        hide_words: bool = False,
        chance: random.Random | None = None,
    ) -> None:
        chance = chance or random.Random()  # noqa: S311 - no secret
        self._stats = stats
        self._patience = patience
        self._long_patience = long_patience
        self._describe = describe
        self._courier = Courier(sink, envelope, stats, backoff, sleep, hide_words=hide_words)
        self._witnesses = Witnesses(self._courier, chance)
        self._trial = Trial(self._courier, self._witnesses, long_patience, chance)

    async def deliver(self, spans: list[bytes], others: Others | None = None) -> None:
        """Send spans until each is accepted, rejected or set aside.

        Args:
            spans: ScopeSpans messages, each with one span.
            others: returns later spans; if these spans are refused, later ones show whether the
                destination accepts anything.
        """
        num_set_aside = self._stats.num_set_aside
        self._witnesses.begin(spans, others)
        waiting, suspected = [spans], False
        while waiting:
            part = waiting.pop()
            unwanted = await self._send(part, suspected=suspected)
            if unwanted is None:
                continue
            self._stats.last_error = self._courier.redact(unwanted.reason)
            suspected = suspected or not isinstance(unwanted, TooLarge | Refused)
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
            else:
                self._set_aside(part[0])
        num_set_aside = self._stats.num_set_aside - num_set_aside
        if num_set_aside:
            logger.error(
                "%d of %d spans were refused while others were accepted, and are set aside: %s",
                num_set_aside,
                len(spans),
                self._stats.last_error,
            )

    async def _send(self, spans: list[bytes], *, suspected: bool) -> Unwanted | None:
        """Send spans until they are accepted; return None, or the answer that ends the attempts."""
        num_attempts = num_failures = 0
        while True:
            outcome = await self._courier.attempt(spans)
            if isinstance(outcome, Accepted):
                self._count_taken(spans, outcome)
                return None
            num_attempts += 1
            num_failures += isinstance(outcome, Failed)
            if (
                suspected
                or isinstance(outcome, Refused | TooLarge)
                or (isinstance(outcome, Failed) and num_failures >= self._patience)
                or num_attempts >= self._long_patience
            ):
                break
            await self._courier.hold(outcome)
        if len(spans) > 1:
            return outcome
        unwanted = await self._trial.judge(spans[0], outcome)
        if unwanted is None:
            self._count_taken(spans, Accepted())
        return unwanted

    def _count_taken(self, spans: list[bytes], answer: Accepted) -> None:
        stats, num_rejected = self._stats, max(answer.num_rejected, 0)
        self._courier.note_taken()
        if num_rejected or answer.message:
            stats.last_error = self._courier.redact(f"PARTIAL_SUCCESS: {answer.message}")
            logger.warning(
                "%d of %d spans were rejected: %s; the request went from %s to %s",
                num_rejected,
                len(spans),
                stats.last_error,
                self._describe(spans[0]),
                self._describe(spans[-1]),
            )
        if not num_rejected:
            self._witnesses.note_taken(spans)
        stats.num_rejected += num_rejected
        stats.num_exported += len(spans) - num_rejected

    def _set_aside(self, piece: bytes) -> None:
        described = self._describe(piece)
        self._witnesses.note_set_aside(piece)
        self._stats.num_set_aside += 1
        self._stats.newest_set_aside.append(described)
        logger.warning("%s is set aside: %s", described, self._stats.last_error)
