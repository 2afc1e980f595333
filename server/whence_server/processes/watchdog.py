"""Finds out that an engine process hangs, by what it does and not by how long a pass takes.

A process that was stopped, or waits for a lock that nobody lets go of, does not end: without a
watch it would be served as running for ever. A pass that takes minutes is no reason to end it.
So what counts is any sign of work: a turn of the loop, processor time that was spent, a beat of
its heart while it has nothing to do.
"""

from pathlib import Path

from whence_server.processes.heartbeat import Beat, Phase

STUCK_FACTOR = 10
"""How much longer a process may be that beats and spends no processor time within a turn: it may
wait for a device or a disk."""
_LEAST_NS = 1_000_000


class Watchdog:
    """Counts for how long a process has shown no sign of work.

    Time is counted in calls of `look`, not by a clock: where this process did not run either, as
    in a container that was frozen, none passes.

    Args:
        patience: looks without any sign after which the process hangs.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._beat: Beat | None = None
        self._processor_time: int | None = None
        self._num_silent = 0
        self._num_stuck = 0

    def look(self, beat: Beat | None, processor_time: int | None) -> str:
        """Take note of how things are; return why the process hangs, "" while it does not.

        Args:
            beat: the newest one.
            processor_time: of the whole process, in any unit; None where it is not known.
        """
        beats = beat is not None and (self._beat is None or beat.number != self._beat.number)
        spends = processor_time is not None and processor_time != self._processor_time
        works = self._works(beat) if beats else spends
        self._num_silent = 0 if beats or spends else self._num_silent + 1
        self._num_stuck = 0 if works else self._num_stuck + 1
        if works:
            self._beat = beat
        elif beats and beat is not None and self._beat is not None:
            self._beat = self._beat._replace(number=beat.number)
        self._processor_time = processor_time
        if self._num_silent >= self._patience:
            return "it does not run: no heartbeat, no processor time"
        if self._num_stuck >= self._patience * STUCK_FACTOR:
            return "a turn of it neither ends nor spends processor time"
        return ""

    def _works(self, beat: Beat | None) -> bool:
        """Tell whether more was done since the last sign of work."""
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
    """Return a process's processor time in the kernel's ticks; None where there is no /proc."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, in brackets, may hold anything (man 5 proc): utime and stime are fields 14 and 15.
    fields = stat.rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
