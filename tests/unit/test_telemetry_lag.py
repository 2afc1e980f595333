"""Lag of an export behind the journal."""

import asyncio

from journal_export import JournalExport
from telemetry_journal import MemoryJournal

from whence_server.telemetry.export.outcomes import Accepted, Outcome, TryAgain
from whence_server.telemetry.lag import LagClock


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_lags_age_is_that_of_the_oldest_unhandled_entry():
    clock = Clock()
    lag = LagClock(clock)
    lag.observe(0, 0)
    assert lag.measure_oldest_s() == 0.0
    lag.observe(5, 0)
    clock.now += 3
    lag.observe(9, 0)
    clock.now += 4
    assert lag.measure_oldest_s() == 7.0
    lag.observe(9, 4)
    assert lag.measure_oldest_s() == 7.0
    lag.observe(9, 5)
    assert lag.measure_oldest_s() == 4.0
    lag.observe(9, 9)
    assert lag.measure_oldest_s() == 0.0


def test_a_long_outage_takes_bounded_memory_and_never_overstates_an_age():
    clock = Clock()
    lag = LagClock(clock)
    committed_at = {}
    for position in range(1, 10_000):
        clock.now += 1
        committed_at[position] = clock.now
        lag.observe(position, 0)
    assert len(lag._marks) <= 512
    for position in range(1, 10_000, 37):
        lag.observe(9_999, position - 1)
        assert 0 <= lag.measure_oldest_s() <= clock.now - committed_at[position]


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


async def test_lag_and_counters_show_the_state_of_the_export():
    journal, gate, clock = MemoryJournal(), Gate(), Clock()
    journal.append_generation("g", num_steps=3)

    async def sleep(_: float) -> None:
        await asyncio.sleep(0)

    exporter = JournalExport(journal, gate, sleep=sleep, clock=clock)
    exporter.start()
    await gate.asked.wait()
    while not exporter.stats.retrying:  # noqa: ASYNC110 - counters, which nobody announces
        await asyncio.sleep(0)
    clock.now += 60
    assert exporter.measure_lag() == (len(journal.entries), 60.0)
    stats = exporter.stats
    assert (stats.last_error, stats.num_exported) == ("shut", 0)
    assert stats.num_retries > 0
    gate.open = True
    assert await exporter.flush(60)
    lag, retrying = exporter.measure_lag(), stats.retrying
    await exporter.close()
    assert (lag, retrying) == ((0, 0.0), False)
    assert stats.num_exported > 3
    assert stats.last_error == "shut"
