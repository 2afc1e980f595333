"""Calls that read a running generation."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from whence_server.domain.errors import Code, WhenceError
from whence_server.domain.occurrences import Caller
from whence_server.generation.content.held import HeldContent
from whence_server.generation.running import RunningGeneration

_MAX_OFFSET = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Reader:
    """A call that reads a generation."""

    caller: Caller
    was_ended_by_deadline: Callable[[], bool]
    is_own: bool = True
    """True for the caller of the generation itself, whose stream is whole whatever is stored."""
    takes_record: bool = False
    """True for a call that is told which entries lack content: it takes the record's, too."""


class Reading:
    """Progress of one call that reads a generation.

    Attributes:
        reader: the call.
        after_offset: offset up to which entries are skipped.
        last_offset: last offset that was written to the connection.
    """

    def __init__(self, reader: Reader, after_offset: int) -> None:
        self.reader = reader
        self.after_offset = self.last_offset = min(after_offset, _MAX_OFFSET)

    def keeps(self, held: HeldContent | None) -> bool:
        """Return whether the call keeps a generation from being abandoned.

        What is held in memory waits for its own caller: a reader of the record reads none of it.
        """
        return held is None or self.reader.is_own

    def find_status(self, error: BaseException) -> Code:
        """Return the status with which the call ended before the generation did."""
        if isinstance(error, WhenceError):
            return error.code
        if self.reader.was_ended_by_deadline():
            return Code.DEADLINE_EXCEEDED
        return Code.CANCELLED


@contextmanager
def count_reader(
    running: RunningGeneration,
    reading: Reading,
    held: HeldContent | None,
    on_last_left: Callable[[], None],
) -> Iterator[None]:
    """Count a call as a reader of a generation, and record that it came and went.

    Args:
        running: the generation.
        reading: the call's progress.
        held: entries of its stream in memory; None if the record holds them.
        on_last_left: called if the generation still runs and nobody reads it who keeps it.
    """
    caller, occurrences = reading.reader.caller, running.occurrences
    keeps = reading.keeps(held)
    running.num_readers += keeps
    occurrences.record_joined(caller, reading.after_offset, running.num_readers)
    status = Code.CANCELLED
    try:
        yield
    except BaseException as error:
        status = reading.find_status(error)
        raise
    finally:
        running.num_readers -= keeps
        if not running.done.is_set():
            occurrences.record_left(caller, reading.last_offset, status, running.num_readers)
            if keeps and running.num_readers == 0:
                on_last_left()
