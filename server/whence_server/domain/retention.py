"""Vocabulary of retention: for how long generations are kept, and which are never deleted."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

ANY_VALUE = "*"
"""Value of a pattern that matches every value of its label."""
HARD_CAP = 1.25
"""Size, as a multiple of `max_bytes`, from which generations are deleted that an export has not
read."""
_SECOND_NS = 1_000_000_000


class DeletionCause(IntEnum):
    """Cause of a deletion, with the numbers of whence.v1.DeletionCause."""

    CALLER = 1
    AGE = 2
    SIZE = 3
    REMOVAL = 4
    """Not a deletion of content: the oldest entries, whose content was gone, were removed."""


@dataclass(frozen=True, slots=True)
class DeletionRequest:
    """Request to delete one generation, as it is put on record."""

    generation_id: str
    cause: DeletionCause = DeletionCause.CALLER
    caller_id: str = ""
    """Id of the caller that asked for it; "" without authentication, and for other causes."""
    rule: str = ""
    """Setting by which it is deleted; "" for a caller's request."""


class LabelPattern(NamedTuple):
    """Pattern that matches generations by one label."""

    name: str
    value: str
    """`ANY_VALUE` matches every value."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether a generation with these labels matches."""
        found = labels.get(self.name)
        return found is not None and self.value in {ANY_VALUE, found}

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


class LabelAge(NamedTuple):
    """Age at which generations with a label are deleted."""

    pattern: LabelPattern
    age_s: int
    setting: str = ""
    """Pattern as the setting has it, if a store spells its labels in another way."""

    def __str__(self) -> str:
        return f"--retain-label {self.setting or self.pattern}={spell_age(self.age_s)}"


class Limit(NamedTuple):
    """Age at which one generation is deleted, and the setting that says so."""

    age_ns: int
    rule: str


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """Rules by which generations are deleted without a caller's request.

    The age of a generation counts from the arrival of its request. A label's age is more specific
    than the general one and takes its place, longer or shorter; if several labels match, the
    shortest of their ages holds. A hold is stronger than every age and every size.
    """

    age_s: int | None = None
    """Age at which generations without a label's age are deleted; None for never."""
    max_bytes: int = 0
    """Size of the database in use above which the oldest generations are deleted; 0 is no limit."""
    label_ages: tuple[LabelAge, ...] = ()
    holds: tuple[LabelPattern, ...] = ()
    """Patterns of generations that nothing deletes."""
    unread_s: int = 0
    """Time for which a generation past its age is kept for an export that has not read it."""

    def find_hold(self, labels: Mapping[str, str]) -> LabelPattern | None:
        """Return the first hold that matches; None if nothing holds the generation."""
        return next((hold for hold in self.holds if hold.matches(labels)), None)

    def find_label_age(self, labels: Mapping[str, str]) -> LabelAge | None:
        """Return the rule about labels that holds for a generation; None if none matches."""
        matching = (rule for rule in self.label_ages if rule.pattern.matches(labels))
        return min(matching, key=lambda rule: rule.age_s, default=None)

    def find_limit(self, labels: Mapping[str, str]) -> Limit | None:
        """Return the age at which a generation with these labels is deleted; None for never."""
        rule = self.find_label_age(labels)
        if rule is not None:
            return Limit(rule.age_s * _SECOND_NS, str(rule))
        if self.age_s is None:
            return None
        return Limit(self.age_s * _SECOND_NS, f"--retain {spell_age(self.age_s)}")

    def respell(self, spell: Callable[[LabelPattern], Iterable[LabelPattern]]) -> "RetentionPolicy":
        """Return the policy for labels that are stored in other ways than callers give them.

        Args:
            spell: returns the patterns that match what is stored, for a pattern of a setting.
        """
        return replace(
            self,
            label_ages=tuple(
                LabelAge(stored, rule.age_s, str(rule.pattern))
                for rule in self.label_ages
                for stored in spell(rule.pattern)
            ),
            holds=tuple(stored for hold in self.holds for stored in spell(hold)),
        )

    @property
    def longest_age_s(self) -> int | None:
        """Longest of all ages; None if there is none."""
        ages = [rule.age_s for rule in self.label_ages]
        if self.age_s is not None:
            ages.append(self.age_s)
        return max(ages, default=None)

    @property
    def deletes(self) -> bool:
        """True if the policy deletes anything."""
        return self.longest_age_s is not None or self.max_bytes > 0


def spell_size(size: int) -> str:
    """Return a size with a unit: 50GB or 1.25MB; bytes below a kilobyte."""
    for unit, multiple in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= multiple:
            return f"{size / multiple:.4g}{unit}"
    return f"{size} bytes"


def spell_age(age_s: int) -> str:
    """Return an age in the largest unit that divides it: 180d, 36h or 90s."""
    for unit, seconds in (("d", 86_400), ("h", 3_600)):
        if age_s % seconds == 0:
            return f"{age_s // seconds}{unit}"
    return f"{age_s}s"
