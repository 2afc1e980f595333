"""Delivery to a collector in memory, which answers by the spans and the number of the request."""

import random
from collections.abc import Callable, Sequence

from faulty_collector import spans_in
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from whence_server.telemetry.export.backoff import Backoff
from whence_server.telemetry.export.delivery import Delivery
from whence_server.telemetry.export.outcomes import Accepted, Failed, Outcome
from whence_server.telemetry.export.resource import Envelope, make_service_resource
from whence_server.telemetry.export.stats import ExportStats
from whence_server.telemetry.export.trial import Others
from whence_server.telemetry.spans.spans import describe_span

PATIENCE, LONG_PATIENCE = 20, 40
BROKEN = Failed("broken")


def piece(name: str) -> bytes:
    return ScopeSpans(spans=[Span(name=name, span_id=bytes(8))]).SerializeToString()


class Collector:
    """Collector whose answer depends on the names of the spans and the number of the request."""

    def __init__(self, answer: Callable[[list[str], int], Outcome]) -> None:
        self.taken: list[str] = []
        self.requests: list[list[str]] = []
        self._answer = answer

    async def export(self, request: bytes) -> Outcome:
        names = [span.name for span in spans_in(request)]
        self.requests.append(names)
        outcome = self._answer(names, len(self.requests))
        if isinstance(outcome, Accepted):
            self.taken += names[outcome.num_rejected :]
        return outcome

    async def close(self) -> None:
        pass


class Case:
    def __init__(self, answer: Callable[[list[str], int], Outcome], seed: int = 7) -> None:
        self.collector = Collector(answer)
        self.stats = ExportStats()
        self.slept: list[float] = []
        self.delivery = Delivery(
            self.collector,
            Envelope(make_service_resource("0"), "0"),
            self.stats,
            Backoff(0.1, 30.0),
            self._sleep,
            describe=describe_span,
            patience=PATIENCE,
            long_patience=LONG_PATIENCE,
            chance=random.Random(seed),
        )

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def deliver(self, *names: str, others: Others | None = None) -> None:
        await self.delivery.deliver([piece(name) for name in names], others)


def failing_over(
    *poison: str, outcome: Outcome = BROKEN
) -> Callable[[Sequence[str], int], Outcome]:
    def answer(names: Sequence[str], _: int) -> Outcome:
        return outcome if set(poison) & set(names) else Accepted()

    return answer
