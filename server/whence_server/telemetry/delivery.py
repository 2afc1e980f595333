"""Brings a batch of spans to its destination, however long that takes."""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans

from whence_server.telemetry.resource import Envelope
from whence_server.telemetry.seams import (
    Accepted,
    Failed,
    Misconfigured,
    Outcome,
    Refused,
    SpanSink,
    TooLarge,
    TryAgain,
)

logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]
Describe: TypeAlias = Callable[[bytes], str]
Unwanted: TypeAlias = Failed | TooLarge | Refused | TryAgain | Misconfigured
"""What parts a batch, down to the spans at fault."""

DEFAULT_PATIENCE = 20
DEFAULT_LONG_PATIENCE = 40
# One that fails by chance, as with a bad replica of two, proves nothing by one failure: that it
# fails over one span and takes another so often in a row has a chance of 1 in 4^8 at most.
_NUM_PROOFS = 8
# A collector that crashes may be down for a while each time: no proofs in a row are to be had.
# Two takings right before a failure make one by chance rarer than a success, at any chance.
_NUM_TAKINGS = 2
MAX_ASKED_DELAY_S = 3_600.0
"""No destination is left alone for longer, whatever it asks for."""


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
    retrying: bool = False
    """The newest answer was none that moves on."""
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


@dataclass(slots=True)
class _Suspicion:
    """What was seen of one request while its destination kept failing over it."""

    num_proofs_needed: int
    num_failures: int = 0
    """Answers that say that the destination broke over it."""
    num_proofs: int = 0
    """Failures in a row right after which the destination took another span."""
    num_attempts: int = 0
    """All that came to nothing, whatever the answer."""
    was_well: bool = False
    """Right before the newest attempt, the destination took another span, and took it again."""
    num_breakdowns: int = 0
    """Attempts that came to nothing although the destination was well."""


def describe_span(piece: bytes) -> str:
    """A span's ids and name, from the ScopeSpans message that holds it alone."""
    span = ScopeSpans.FromString(piece).spans[0]
    return f"span {span.span_id.hex()} ({span.name}) of trace {span.trace_id.hex()}"


def kind_of(error: str) -> str:
    """What an error is, without the words that follow: these may repeat what was sent.

    Args:
        error: KIND: WORDS, where the kind is a status, or an exception's name.
    """
    return error.partition(":")[0]


class Delivery:
    """Sends batches to a sink: retries what may be retried, and gives up on single spans only.

    - A refused batch, or one that is too large, is sent again in halves at once, in order, down
      to the spans that are refused by themselves: those are set aside.
    - A destination that fails is given `patience` attempts. Then the newest span that it took
      before is sent along: only if it takes that one again (the same to the byte, hence
      harmless) is the batch at fault, and halved; a single span is set aside once this was
      seen several times in a row. Otherwise the destination is at fault, and the batch waits.
      Where it has taken none yet, patience has to do.
    - A destination that is away, has its hands full, takes too long or wants other settings
      says nothing against the spans, which are sent again, for ever: unless, after
      `long_patience` attempts, it takes that newest span again, twice, right before it comes to
      nothing over the batch. A collector that a span crashes looks so, and a firewall that
      dislikes one. The batch is then halved, and a single span set aside once this was seen
      several times. Where none was taken yet, other spans of the batch are tried instead.

    Args:
        sink: where to.
        envelope: makes requests of spans.
        stats: counts what becomes of them.
        backoff: paces the attempts.
        sleep: takes seconds.
        patience: attempts at what the destination fails over, before its spans are suspected.
        long_patience: attempts at what comes to nothing in another way, likewise.
        describe: names a span that is set aside, for the log.
        hide_words: keep of what the destination says only its kind: where it gets content, the
            rest may repeat that.
    """

    def __init__(
        self,
        sink: SpanSink,
        envelope: Envelope,
        stats: ExportStats,
        backoff: Backoff,
        sleep: Sleep,
        *,
        patience: int = DEFAULT_PATIENCE,
        long_patience: int = DEFAULT_LONG_PATIENCE,
        describe: Describe = describe_span,
        hide_words: bool = False,
    ) -> None:
        self._sink = sink
        self._envelope = envelope
        self._stats = stats
        self._backoff = backoff
        self._sleep = sleep
        self._patience = patience
        self._long_patience = long_patience
        self._describe = describe
        self._hide_words = hide_words
        self._batch: list[bytes] = []
        self._taken: bytes | None = None
        self._told = ""

    async def deliver(self, spans: list[bytes]) -> None:
        """Returns once every span was taken, rejected or set aside.

        Args:
            spans: each a ScopeSpans message that holds it alone.
        """
        num_set_aside = self._stats.num_set_aside
        self._batch = spans
        waiting, suspected = [spans], False
        while waiting:
            part = waiting.pop()
            unwanted = await self._send(part, suspected=suspected)
            if unwanted is None:
                continue
            self._stats.last_error = self._shown(unwanted.reason)
            suspected = suspected or not isinstance(unwanted, TooLarge | Refused)
            if len(part) > 1:
                middle = len(part) // 2
                waiting += [part[middle:], part[:middle]]
            else:
                self._set_aside(part[0])
        num_set_aside = self._stats.num_set_aside - num_set_aside
        if num_set_aside:
            logger.error(
                "%d of %d spans were refused and are set aside: %s",
                num_set_aside,
                len(spans),
                self._stats.last_error,
            )

    async def _send(self, spans: list[bytes], *, suspected: bool) -> Unwanted | None:
        """Sends until there is an answer that counts: taken (None), or unwanted."""
        request = self._envelope.request(spans)
        suspicion = _Suspicion(1 if len(spans) > 1 else _NUM_PROOFS)
        while True:
            suspicion.was_well = await self._is_well(suspicion, suspected=suspected)
            outcome = await self._attempt(request)
            if isinstance(outcome, TooLarge) and not outcome.certain and len(spans) == 1:
                # One span is hardly too large: the destination has its hands full.
                outcome = Failed(outcome.reason)
            match outcome:
                case Accepted():
                    self._backoff.reset()
                    self._count_taken(spans, outcome)
                    return None
                case Refused() | TooLarge():
                    self._backoff.reset()
                    return outcome
                case Failed(reason=reason, delay_s=delay_s):
                    if await self._are_at_fault(suspicion, suspected=suspected):
                        self._backoff.reset()
                        return outcome
                    await self._wait(reason, self._delay_s(delay_s))
                case TryAgain() | Misconfigured():
                    if await self._breaks_down(suspicion):
                        self._backoff.reset()
                        return outcome
                    if isinstance(outcome, TryAgain):
                        await self._wait(outcome.reason, self._delay_s(outcome.delay_s))
                    else:
                        await self._wait(outcome.reason, self._backoff.longest_s())

    async def _are_at_fault(self, suspicion: _Suspicion, *, suspected: bool) -> bool:
        """Says whether the destination fails over these spans alone, as far as can be known."""
        suspicion.num_failures += 1
        out_of_patience = suspicion.num_failures >= self._patience
        if self._taken is None:
            return out_of_patience
        if not (out_of_patience or suspected):
            return False
        outcome = await self._attempt(self._envelope.request([self._taken]))
        suspicion.num_proofs = suspicion.num_proofs + 1 if isinstance(outcome, Accepted) else 0
        return suspicion.num_proofs >= suspicion.num_proofs_needed

    async def _is_well(self, suspicion: _Suspicion, *, suspected: bool) -> bool:
        """Says whether the destination takes another span, where it is time to ask for that."""
        asked = suspicion.num_attempts >= (1 if suspected else self._long_patience)
        if not asked or self._taken is None:
            return False
        for _ in range(_NUM_TAKINGS):
            if not await self._takes(self._taken):
                return False
        return True

    async def _breaks_down(self, suspicion: _Suspicion) -> bool:
        """Says whether the destination is well until it gets these spans, as far as is known."""
        suspicion.num_attempts += 1
        suspicion.num_breakdowns += suspicion.was_well
        if self._taken is None and suspicion.num_attempts >= self._long_patience:
            # Those at fault may be among the batch's others: each gets its turn.
            other = self._batch[-suspicion.num_attempts % len(self._batch)]
            if await self._takes(other):
                self._taken = other
        return suspicion.num_breakdowns >= suspicion.num_proofs_needed

    async def _takes(self, span: bytes) -> bool:
        outcome = await self._attempt(self._envelope.request([span]))
        return isinstance(outcome, Accepted) and not outcome.num_rejected

    def _count_taken(self, spans: list[bytes], answer: Accepted) -> None:
        stats, num_rejected = self._stats, min(max(answer.num_rejected, 0), len(spans))
        stats.retrying, self._told = False, ""
        if num_rejected or answer.message:
            stats.last_error = self._shown(f"PARTIAL_SUCCESS: {answer.message}")
            logger.warning(
                "%d of %d spans were rejected: %s", num_rejected, len(spans), stats.last_error
            )
        else:
            self._taken = spans[-1]
        stats.num_rejected += num_rejected
        stats.num_exported += len(spans) - num_rejected

    def _set_aside(self, piece: bytes) -> None:
        self._stats.num_set_aside += 1
        logger.warning("%s is set aside: %s", self._describe(piece), self._stats.last_error)

    def _shown(self, reason: str) -> str:
        return kind_of(reason) if self._hide_words else reason

    def _delay_s(self, asked_s: float | None) -> float:
        return self._backoff.next_s(min(asked_s or 0.0, MAX_ASKED_DELAY_S))

    async def _attempt(self, request: bytes) -> Outcome:
        self._stats.num_requests += 1
        try:
            return await self._sink.export(request)
        except Exception as error:  # noqa: BLE001 - a sink of the user's own must not end ours
            return TryAgain(f"{type(error).__name__}: {error}")

    async def _wait(self, reason: str, delay_s: float) -> None:
        stats, reason = self._stats, self._shown(reason)
        stats.num_retries += 1
        stats.retrying = True
        # One line for each new reason: a collector that is away for an hour fills no log.
        level = logging.DEBUG if reason == self._told else logging.WARNING
        self._told = stats.last_error = reason
        logger.log(level, "spans are held back, next try in %.1f s: %s", delay_s, reason)
        await self._sleep(delay_s)
