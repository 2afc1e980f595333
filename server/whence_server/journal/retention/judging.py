"""Decision about one generation: kept, kept for an export, or deleted. Pure functions."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from whence_server.domain.retention import (
    HARD_CAP,
    RetentionPolicy,
    spell_size,
)
from whence_server.journal.retention.store import Candidate


class Action(Enum):
    """Decision about a generation."""

    KEEP = "keep"
    HOLD = "hold"
    """A hold keeps it, or its labels cannot be read."""
    WAIT = "wait"
    """It would be deleted if every export had read it."""
    DELETE = "delete"
    DELETE_UNREAD = "delete_unread"
    """It is deleted although an export has not read it: the time for that is over."""


class Verdict(NamedTuple):
    """Decision about a generation, and the setting that it follows from."""

    action: Action
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Moment:
    """Facts by which generations are judged at one time.

    Attributes:
        now_ns: Unix time.
        read_position: position up to which every export has read.
        find_old_position: returns the position up to which all entries are older than an age, in
            nanoseconds.
    """

    now_ns: int
    read_position: int
    find_old_position: Callable[[int], int]


def judge_age(candidate: Candidate, policy: RetentionPolicy, moment: Moment) -> Verdict:
    """Judge a generation that has ended by its age."""
    if candidate.labels is None or policy.find_hold(candidate.labels):
        return Verdict(Action.HOLD)
    limit = policy.find_limit(candidate.labels)
    if limit is None:
        return Verdict(Action.KEEP)
    due_ns = candidate.key.start_time_ns + limit.age_ns
    if due_ns > moment.now_ns or (
        candidate.started_position > moment.find_old_position(limit.age_ns)
    ):
        return Verdict(Action.KEEP)
    if candidate.last_position <= moment.read_position:
        return Verdict(Action.DELETE, limit.rule)
    if due_ns + policy.unread_s * 1_000_000_000 > moment.now_ns:
        return Verdict(Action.WAIT, limit.rule)
    return Verdict(Action.DELETE_UNREAD, limit.rule)


def judge_size(
    candidate: Candidate, policy: RetentionPolicy, moment: Moment, used_bytes: int
) -> Verdict:
    """Judge the oldest generation that has ended, in a journal of a size above the limit."""
    if candidate.labels is None or policy.find_hold(candidate.labels):
        return Verdict(Action.HOLD)
    rule = f"--retain-bytes {spell_size(policy.max_bytes)}"
    if candidate.last_position <= moment.read_position:
        return Verdict(Action.DELETE, rule)
    if used_bytes < policy.max_bytes * HARD_CAP:
        return Verdict(Action.WAIT, rule)
    return Verdict(Action.DELETE_UNREAD, rule)
