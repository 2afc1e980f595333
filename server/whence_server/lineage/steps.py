"""Where each optimizer step lies in a record, and which of them count: 40 bytes a step.

A step is superseded where a later attempt went on from an earlier checkpoint: it stays on record,
and its effect is in no weights.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from heapq import merge
from typing import NamedTuple

from whence_server.lineage.lookup import Place


class StepRef(NamedTuple):
    """One step on record."""

    number: int
    """From 1; superseded steps share theirs with those that replaced them."""
    attempt: int
    place: Place


class StepRange(NamedTuple):
    """Which steps are wanted."""

    first: int = 0
    """0 is the first on record."""
    last: int = 0
    """0 is the newest."""
    stride: int = 1
    """One in so many, counted from the first; the last is always one of them."""
    include_superseded: bool = False


class StepIndex:
    """Grows with the record; in the order of the record."""

    def __init__(self) -> None:
        self._numbers = array("Q")
        self._attempts = array("I")
        self._begins = array("Q")
        self._lengths = array("I")
        self._checks = array("Q")
        self._counting = array("Q")
        """Which of them count, by ascending number."""
        self._superseded = array("Q")
        """And which do not."""
        self._is_sorted = True

    def __len__(self) -> int:
        """How many count."""
        return len(self._counting)

    @property
    def num_superseded(self) -> int:
        """How many do not."""
        return len(self._superseded)

    @property
    def newest(self) -> StepRef | None:
        """The last one that counts."""
        return self._ref(self._counting[-1]) if self._counting else None

    def at(self, number: int) -> StepRef | None:
        """The one of this number that counts."""
        where = bisect_left(self._counting, number, key=self._number)
        found = where < len(self._counting) and self._number(self._counting[where]) == number
        return self._ref(self._counting[where]) if found else None

    def add(self, number: int, attempt: int, place: Place) -> None:
        """Take in the record's next step."""
        self.supersede_beyond(number - 1)
        self._counting.append(len(self._numbers))
        self._numbers.append(number)
        self._attempts.append(attempt)
        self._begins.append(place.begin_byte)
        self._lengths.append(place.end_byte - place.begin_byte)
        self._checks.append(place.check)

    def supersede_beyond(self, number: int) -> None:
        """The training went on from that step: what was made beyond it counts no more."""
        while self._counting and self._numbers[self._counting[-1]] > number:
            self._superseded.append(self._counting.pop())
            self._is_sorted = False

    def select(self, wanted: StepRange, after: tuple[int, int] = (0, 0)) -> Iterator[StepRef]:
        """The steps of a range, by ascending number and attempt.

        Args:
            wanted: the range.
            after: number and attempt; those up to and including it are left out.
        """
        kinds = [self._counting]
        if wanted.include_superseded:
            kinds.append(self._sorted_superseded())
        first = wanted.first or min((self._number(kind[0]) for kind in kinds if kind), default=0)
        last = max((self._last(kind, wanted.last) for kind in kinds), default=0)
        begin = max((first, 0), (after[0], after[1] + 1))
        for which in merge(*(self._from(kind, begin) for kind in kinds), key=self._key):
            number = self._numbers[which]
            if number > last:
                return
            if (number - first) % max(wanted.stride, 1) == 0 or number == last:
                yield self._ref(which)

    def _last(self, kind: "array[int]", bound: int) -> int:
        """Number of the last step up to a bound (0 is none); 0 where there is no step."""
        end = bisect_right(kind, bound, key=self._number) if bound else len(kind)
        return self._number(kind[end - 1]) if end else 0

    def _from(self, kind: "array[int]", begin: tuple[int, int]) -> Iterator[int]:
        return (kind[i] for i in range(bisect_left(kind, begin, key=self._key), len(kind)))

    def _sorted_superseded(self) -> "array[int]":
        if not self._is_sorted:
            self._superseded = array("Q", sorted(self._superseded, key=self._key))
            self._is_sorted = True
        return self._superseded

    def _number(self, which: int) -> int:
        return self._numbers[which]

    def _key(self, which: int) -> tuple[int, int]:
        return self._numbers[which], self._attempts[which]

    def _ref(self, which: int) -> StepRef:
        begin = self._begins[which]
        place = Place(begin, begin + self._lengths[which], self._checks[which])
        return StepRef(self._numbers[which], self._attempts[which], place)
