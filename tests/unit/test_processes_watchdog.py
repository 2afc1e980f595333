"""Watchdog and heartbeat: signs of an engine's work, and of its hanging."""

import os
import threading

import pytest

from whence_server.processes.heartbeat import Beat, Heart, Phase, Pulse
from whence_server.processes.watchdog import STUCK_FACTOR, Watchdog, read_processor_time

PATIENCE = 5
LONG = PATIENCE * STUCK_FACTOR * 2
SECOND_NS = 1_000_000_000


def looks(watchdog: Watchdog, seen: list[tuple[Beat | None, int | None]]) -> list[str]:
    return [watchdog.look(beat, spent) for beat, spent in seen]


def beating(phase: Phase, turns: int = 0, busy_ns: int = 0) -> list[tuple[Beat, int]]:
    """Return a beat for every look, each with `turns` more turns and `busy_ns` more CPU time."""
    return [(Beat(i, phase, i * turns, i * busy_ns), 0) for i in range(LONG)]


@pytest.mark.parametrize(
    "seen",
    [
        beating(Phase.IDLE),
        beating(Phase.LOADING),
        # The front is slow to read: the engine has to wait for it.
        beating(Phase.SENDING),
        beating(Phase.WORKING, turns=1),
        # One forward pass over all these looks.
        beating(Phase.WORKING, busy_ns=SECOND_NS),
        # A pass in code that keeps the interpreter's lock: no beat, but processor time.
        [(Beat(0, Phase.WORKING, 1, 0), i) for i in range(LONG)],
        # Not yet alive enough to beat.
        [(None, i) for i in range(LONG)],
    ],
    ids=["idle", "loading", "held back", "turns", "a long pass", "no beat", "starting"],
)
def test_long_work_does_not_count_as_hanging(seen: list[tuple[Beat | None, int | None]]) -> None:
    assert set(looks(Watchdog(PATIENCE), seen)) == {""}


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("spent", [7, None])
def test_a_process_without_heartbeat_and_cpu_time_hangs(phase: Phase, spent: int | None) -> None:
    stopped = [(Beat(3, phase, 4, 5), spent)] * (PATIENCE + 1)
    *before, last = looks(Watchdog(PATIENCE), stopped)
    assert set(before) == {""}
    assert "does not run" in last


def test_a_process_that_never_beats_hangs() -> None:
    assert looks(Watchdog(PATIENCE), [(None, None)] * PATIENCE)[-1]


def test_a_turn_without_cpu_time_hangs_after_ten_times_the_patience() -> None:
    verdicts = looks(Watchdog(PATIENCE), beating(Phase.WORKING, busy_ns=10))
    hung = next(i for i, why in enumerate(verdicts) if why)
    assert hung == PATIENCE * STUCK_FACTOR
    assert "neither ends nor spends" in verdicts[hung]


def test_a_beat_after_silence_restarts_the_count() -> None:
    watchdog = Watchdog(PATIENCE)
    for number in range(10):
        beat = Beat(number, Phase.WORKING, number, 0)
        assert set(looks(watchdog, [(beat, 0)] * (PATIENCE - 1))) == {""}


def test_heartbeat_reports_phase_and_cpu_time_of_other_threads() -> None:
    reading, writing = os.pipe()
    pulse, heart = Pulse(reading), Heart(writing)
    assert pulse.read_newest() is None
    heart.phase, heart.num_turns = Phase.WORKING, 7
    heart.start()
    first = None
    while first is None:
        first = pulse.read_newest()
    assert (first.phase, first.num_turns) == (Phase.WORKING, 7)
    # This thread is busy looking, and says so in the next beat.
    while (second := pulse.read_newest()) is None or second.busy_ns <= first.busy_ns:
        pass
    # It ends with the reader.
    pulse.close()
    pulse.close()
    (beating_thread,) = [t for t in threading.enumerate() if t.name == "heartbeat"]
    beating_thread.join(10)
    assert not beating_thread.is_alive()
    os.close(writing)


def test_cpu_time_of_a_process_grows_with_work() -> None:
    if read_processor_time(os.getpid()) is None:
        pytest.skip("no /proc on this system")
    before = read_processor_time(os.getpid())
    while read_processor_time(os.getpid()) == before:
        sum(range(10_000))
    assert read_processor_time(2**22 + 1) is None
