"""How far the export is behind, and how the exporter tells it."""

import asyncio

from telemetry_journal import MemoryJournal

from whence_server.telemetry.export.exporter import ExportHealth, ExportOptions, SpanExporter
from whence_server.telemetry.export.outcomes import Accepted, Outcome, TryAgain
from whence_server.telemetry.export.resource import service_resource
from whence_server.telemetry.journal import Lag


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_oldest_that_waits_gives_the_age():
    clock = Clock()
    lag = Lag(clock)
    lag.observe(0, 0)
    assert lag.oldest_s() == 0.0
    lag.observe(5, 0)
    clock.now += 3
    lag.observe(9, 0)
    clock.now += 4
    assert lag.oldest_s() == 7.0
    lag.observe(9, 4)
    assert lag.oldest_s() == 7.0
    lag.observe(9, 5)
    assert lag.oldest_s() == 4.0
    lag.observe(9, 9)
    assert lag.oldest_s() == 0.0


def test_a_long_absence_takes_little_memory_and_never_ages_what_is_young():
    clock = Clock()
    lag = Lag(clock)
    committed_at = {}
    for position in range(1, 10_000):
        clock.now += 1
        committed_at[position] = clock.now
        lag.observe(position, 0)
    assert len(lag._marks) <= 512
    for position in range(1, 10_000, 37):
        lag.observe(9_999, position - 1)
        assert 0 <= lag.oldest_s() <= clock.now - committed_at[position]


class Gate:
    """A sink that answers once it is open."""

    def __init__(self) -> None:
        self.open = False
        self.asked = asyncio.Event()

    async def export(self, request: bytes) -> Outcome:
        self.asked.set()
        return Accepted() if self.open else TryAgain("shut")

    async def close(self) -> None:
        pass


async def test_the_exporters_health():
    journal, gate, clock = MemoryJournal(), Gate(), Clock()
    journal.append_generation("g", num_steps=3)

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    exporter = SpanExporter(
        journal,
        gate,
        service_resource("0"),
        "0",
        options=ExportOptions(linger_s=0),
        sleep=sleep,
        clock=clock,
    )
    exporter.start()
    await gate.asked.wait()
    while not exporter.health().retrying:  # noqa: ASYNC110 - counters, which nobody announces
        await asyncio.sleep(0)
    clock.now += 60
    health = exporter.health()
    assert (health.num_entries_behind, health.oldest_s) == (len(journal.entries), 60.0)
    assert (health.last_error, health.num_exported) == ("shut", 0)
    assert health.num_retries > 0
    gate.open = True
    assert await exporter.flush(10)
    after = exporter.health()
    await exporter.close()
    assert isinstance(after, ExportHealth)
    assert (after.num_entries_behind, after.oldest_s, after.retrying) == (0, 0.0, False)
    assert after.num_exported > 3
    assert after.last_error == "shut"
