"""Detector of child processes that hang, by their activity and not by the time a task takes.

A process that was stopped, or is in a deadlock, does not exit. A forward pass that takes minutes
is no hang. So a process counts as alive if it shows any activity: a turn of its loop, CPU time
spent, or a heartbeat while it is idle.
"""

from pathlib import Path

from whence_server.processes.heartbeat import Beat, Phase

STUCK_FACTOR = 10
"""Factor on the patience for a process that beats but spends no CPU time within a turn, as it may
wait for a device or a disk."""
_LEAST_NS = 1_000_000
"""CPU time between two beats that counts as work."""


class Watchdog:
    """Counter of the time for which a process has shown no activity.

    Time is counted in calls of `look`, not by a clock, so that no time passes while this process
    does not run either, as in a frozen container.

    Args:
        patience: number of looks without activity after which the process counts as hanging.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._beat: Beat | None = None
        self._processor_time: int | None = None
        self._num_silent = 0
        self._num_stuck = 0

    def look(self, beat: Beat | None, processor_time: int | None) -> str:
        """Return the reason why the process counts as hanging; "" while it does not.

        Args:
            beat: the newest beat; None before the first.
            processor_time: CPU time of the whole process, in any unit; None if unknown.
        """
        beats = beat is not None and (self._beat is None or beat.number != self._beat.number)
        spends = processor_time is not None and processor_time != self._processor_time
        works = self._has_worked(beat) if beats else spends
        self._num_silent = 0 if beats or spends else self._num_silent + 1
        self._num_stuck = 0 if works else self._num_stuck + 1
        if works:
            self._beat = beat
        elif beats and beat is not None and self._beat is not None:
            self._beat = self._beat._replace(number=beat.number)
        self._processor_time = processor_time
        if self._num_silent >= self._patience:
            return "it does not run: no heartbeat and no CPU time"
        if self._num_stuck >= self._patience * STUCK_FACTOR:
            return "one turn of its loop neither ends nor spends CPU time"
        return ""

    def _has_worked(self, beat: Beat | None) -> bool:
        """Return whether the process has worked since its last sign of work."""
        before = self._beat
        return (
            beat is None
            or before is None
            or beat.phase is not Phase.WORKING
            or beat.phase is not before.phase
            or beat.num_turns != before.num_turns
            or beat.busy_ns - before.busy_ns >= _LEAST_NS
        )


def read_processor_time(pid: int) -> int | None:
    """Return a process's CPU time in clock ticks; None if /proc does not have it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in parentheses, may hold any character (man 5 proc); utime and stime follow as
    # fields 14 and 15.
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
