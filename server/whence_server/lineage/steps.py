"""Index of a record's optimizer steps: their places, and which count; 40 bytes for each step.

A step is superseded if a later attempt continued from an earlier checkpoint. It stays on record,
and has no effect on the later weights. The other steps count.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from heapq import merge
from typing import NamedTuple

from whence_server.lineage.lookup import Place


class StepRef(NamedTuple):
    """Reference to one step on record."""

    number: int
    """Number of the step, from 1; a superseded step and its replacement share it."""
    attempt: int
    place: Place


class StepRange(NamedTuple):
    """Selection of steps by number."""

    first: int = 0
    """Number of the first step; 0 means the first on record."""
    last: int = 0
    """Number of the last step; 0 means the newest."""
    stride: int = 1
    """Distance of the selected steps, counted from the first; the last is always selected."""
    include_superseded: bool = False


class StepIndex:
    """Index of steps, filled in the order of the record."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._attempts = array("I")
        self._begins = array("Q")
        self._lengths = array("I")
        self._checks = array("Q")
        self._counting = array("Q")
        """Indices of the steps that count, by ascending number."""
        self._superseded = array("Q")
        """Indices of the superseded steps."""
        self._is_sorted = True

    def __len__(self) -> int:
        """Return the number of steps that count."""
        return len(self._counting)

    @property
    def num_superseded(self) -> int:
        """Number of superseded steps."""
        return len(self._superseded)

    @property
    def newest(self) -> StepRef | None:
        """Newest step that counts; None if there is none."""
        return self._make_ref(self._counting[-1]) if self._counting else None

    def find(self, number: int) -> StepRef | None:
        """Return the step with this number that counts; None if there is none."""
        where = bisect_left(self._counting, number, key=self._get_number)
        found = where < len(self._counting) and self._get_number(self._counting[where]) == number
        return self._make_ref(self._counting[where]) if found else None

    def add(self, number: int, attempt: int, place: Place) -> None:
        """Add the record's next step."""
        self.supersede_beyond(number - 1)
        self._counting.append(len(self._numbers))
        self._numbers.append(number)
        self._attempts.append(attempt)
        self._begins.append(place.begin_byte)
        self._lengths.append(place.end_byte - place.begin_byte)
        self._checks.append(place.check)

    def supersede_beyond(self, number: int) -> None:
        """Mark all steps after this number as superseded: the training continued from it."""
        while self._counting and self._numbers[self._counting[-1]] > number:
            self._superseded.append(self._counting.pop())
            self._is_sorted = False

    def select(self, wanted: StepRange, after: tuple[int, int] = (0, 0)) -> Iterator[StepRef]:
        """Yield the steps of a range, by ascending number and attempt.

        Args:
            wanted: the range.
            after: number and attempt of a step; steps up to and including it are left out.
        """
        kinds = [self._counting]
        if wanted.include_superseded:
            kinds.append(self._sort_superseded())
        first = wanted.first or min(
            (self._get_number(kind[0]) for kind in kinds if kind), default=0
        )
        last = max((self._find_last(kind, wanted.last) for kind in kinds), default=0)
        begin = max((first, 0), (after[0], after[1] + 1))
        for which in merge(*(self._iterate_from(kind, begin) for kind in kinds), key=self._get_key):
            number = self._numbers[which]
            if number > last:
                return
            if (number - first) % max(wanted.stride, 1) == 0 or number == last:
                yield self._make_ref(which)

    def _find_last(self, kind: "array[int]", bound: int) -> int:
        """Return the number of the last step up to a bound (0: unbounded); 0 if there is none."""
        end = bisect_right(kind, bound, key=self._get_number) if bound else len(kind)
        return self._get_number(kind[end - 1]) if end else 0

    def _iterate_from(self, kind: "array[int]", begin: tuple[int, int]) -> Iterator[int]:
        return (kind[i] for i in range(bisect_left(kind, begin, key=self._get_key), len(kind)))

    def _sort_superseded(self) -> "array[int]":
        if not self._is_sorted:
            self._superseded = array("Q", sorted(self._superseded, key=self._get_key))
            self._is_sorted = True
        return self._superseded

    def _get_number(self, which: int) -> int:
        return self._numbers[which]

    def _get_key(self, which: int) -> tuple[int, int]:
        return self._numbers[which], self._attempts[which]

    def _make_ref(self, which: int) -> StepRef:
        begin = self._begins[which]
        place = Place(begin, begin + self._lengths[which], self._checks[which])
        return StepRef(self._numbers[which], self._attempts[which], place)
