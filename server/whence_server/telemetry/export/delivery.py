"""Brings a batch of spans to its destination, however long that takes."""

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
"""Names an encoded span or event, for the log."""

DEFAULT_PATIENCE = 20
DEFAULT_LONG_PATIENCE = 40


class Delivery:
    """Sends batches to a sink until all is taken, and gives up on proven single spans only.

    - A batch that is refused or too large is sent again in halves at once, in order, down to
      single spans. One that the destination fails over is given `patience` attempts before, and
      one that comes to nothing otherwise (no connection, no permission) `long_patience`.
    - A single span that is not taken is at fault only if the destination takes other, new spans
      right before and after it, many times in a row (`Trial`). It is set aside then.
    - Else the destination takes nothing, whatever its answer says: all of it is held, and single
      spans are sent from time to time, for ever, until one is taken.

    Args:
        sink: where to.
        envelope: makes requests of spans.
        stats: counts what becomes of them.
        backoff: paces the attempts.
        sleep: takes seconds.
        describe: names a span that is set aside, for the log.
        patience: attempts at what the destination fails over, before its spans are suspected.
        long_patience: attempts at what comes to nothing in another way, likewise.
        hide_words: keep of what the destination says only its kind: where it gets content, the
            rest may repeat that.
        chance: where random numbers come from.
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
        """Return once every span was taken, rejected or set aside.

        Args:
            spans: each a ScopeSpans message that holds it alone.
            others: gives spans that wait behind these: where these are refused, they tell
                whether the destination takes anything.
        """
        num_set_aside = self._stats.num_set_aside
        self._witnesses.begin(spans, others)
        waiting, suspected = [spans], False
        while waiting:
            part = waiting.pop()
            unwanted = await self._send(part, suspected=suspected)
            if unwanted is None:
                continue
            self._stats.last_error = self._courier.shown(unwanted.reason)
            suspected = suspected or not isinstance(unwanted, TooLarge | Refused)
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
            else:
                self._set_aside(part[0])
        num_set_aside = self._stats.num_set_aside - num_set_aside
        if num_set_aside:
            logger.error(
                "%d of %d spans were refused while others were taken, and are set aside: %s",
                num_set_aside,
                len(spans),
                self._stats.last_error,
            )

    async def _send(self, spans: list[bytes], *, suspected: bool) -> Unwanted | None:
        """Send until it is known: taken (None), to be halved, or a single span to be given up."""
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
        self._courier.has_taken()
        if num_rejected or answer.message:
            stats.last_error = self._courier.shown(f"PARTIAL_SUCCESS: {answer.message}")
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
