"""Recording of what happens to a running generation besides its own events."""

import time
from collections.abc import Callable
from contextlib import suppress

from whence_server.domain.errors import Code, JournalError
from whence_server.domain.generation import Started
from whence_server.domain.occurrences import (
    Caller,
    EngineEnded,
    EngineResumed,
    Happening,
    Occurrence,
    ReaderJoined,
    ReaderLeft,
)
from whence_server.generation.record_failure import Record
from whence_server.journal.occurrence_codec import encode_occurrence

MAX_OCCURRENCES = 500
"""Number of occurrences of one generation that are recorded, besides those that end it."""
_MAX_DETAIL = 300


class Occurrences:
    """Recorder of one generation's occurrences.

    Args:
        record: holder of the generation's entries.
        started: start of the generation.
        arrival_ns: CLOCK_MONOTONIC time of the request's arrival.
        count_steps: returns the number of steps recorded so far.
    """

    def __init__(
        self, record: Record, started: Started, arrival_ns: int, count_steps: Callable[[], int]
    ) -> None:
        self._record = record
        self._started = started
        self._arrival_ns = arrival_ns
        self._count_steps = count_steps
        self._num_bounded = 0
        self._waits_for_engine = False

    def record(self, happening: Happening) -> None:
        """Record what happens now; do nothing if the journal is lost, which ends the server."""
        elapsed_ns = time.monotonic_ns() - self._arrival_ns
        occurrence = Occurrence(
            self._started.start_time_ns + elapsed_ns, self._count_steps(), happening
        )
        with suppress(JournalError):
            self._record.record_occurrence(
                self._started.generation_id, encode_occurrence(occurrence)
            )

    def record_joined(self, caller: Caller, after_offset: int, num_readers: int) -> None:
        """Record that a call began to read, unless it is the call that started the generation."""
        if caller.trace_context.span_id != self._started.trace_context.span_id:
            self._record_bounded(ReaderJoined(caller, after_offset, num_readers))

    def record_left(self, caller: Caller, last_offset: int, status: Code, num_readers: int) -> None:
        """Record that a call ended before the generation did."""
        self._record_bounded(ReaderLeft(caller, last_offset, status, num_readers))

    def record_engine_ended(self, detail: str) -> None:
        """Record that the engine process ended."""
        self._waits_for_engine = True
        self._record_bounded(EngineEnded(detail[:_MAX_DETAIL]))

    def record_admission(self) -> None:
        """Record that a new engine process continues the generation, if one ended before."""
        if self._waits_for_engine:
            self._waits_for_engine = False
            self._record_bounded(EngineResumed())

    def _record_bounded(self, happening: Happening) -> None:
        # A caller that comes and goes in a loop must not fill the journal.
        if self._num_bounded < MAX_OCCURRENCES:
            self._num_bounded += 1
            self.record(happening)
