"""Decisions about single generations: ages, labels, holds, exports that are behind, clocks."""

import pytest

from whence_server.domain.retention import LabelAge, LabelPattern, RetentionPolicy
from whence_server.journal.listing import PageKey
from whence_server.journal.retention.clock import JUMP_S, PositionAges, RetentionClock
from whence_server.journal.retention.judging import Action, Moment, Verdict, judge_age, judge_size
from whence_server.journal.retention.store import Candidate

S = 10**9
DAY, HOUR = 86_400, 3_600
UNLABELLED: dict[str, str] = {}
NOW = 2_000_000_000 * S


def candidate(
    age_s: float, labels: dict[str, str] | None = UNLABELLED, last_position: int = 20
) -> Candidate:
    key = PageKey(NOW - int(age_s * S), b"g")
    return Candidate("g", key, 10, labels, 10, last_position)


def moment(read_position: int = 100, old_position: int = 100) -> Moment:
    return Moment(NOW, read_position, lambda _: old_position)


def rule(text: str, age_s: int) -> LabelAge:
    return LabelAge(LabelPattern(*text.split("=")), age_s)


POLICY = RetentionPolicy(
    age_s=180 * DAY,
    label_ages=(rule("env=test", 7 * DAY), rule("env=*", 400 * DAY), rule("tier=gold", 300 * DAY)),
    holds=(LabelPattern("matter", "*"), LabelPattern("customer", "acme")),
    unread_s=7 * DAY,
)


@pytest.mark.parametrize(
    ("labels", "age_days", "rule_text"),
    [
        ({}, 180, "--retain 180d"),
        ({"other": "x"}, 180, "--retain 180d"),
        ({"env": "test"}, 7, "--retain-label env=test=7d"),
        ({"env": "production"}, 400, "--retain-label env=*=400d"),
        ({"env": "production", "tier": "gold"}, 300, "--retain-label tier=gold=300d"),
    ],
)
def test_a_label_takes_the_place_of_the_general_age_and_the_shortest_holds(
    labels: dict[str, str], age_days: int, rule_text: str
) -> None:
    old, young = candidate(age_days * DAY, labels), candidate(age_days * DAY - 1, labels)
    assert judge_age(old, POLICY, moment()) == Verdict(Action.DELETE, rule_text)
    assert judge_age(young, POLICY, moment()).action is Action.KEEP


@pytest.mark.parametrize(
    "labels", [{"matter": "2031-17"}, {"customer": "acme", "env": "test"}, None]
)
def test_what_is_held_or_has_unreadable_labels_is_never_deleted(
    labels: dict[str, str] | None,
) -> None:
    ancient = candidate(50 * 365 * DAY, labels)
    large = RetentionPolicy(max_bytes=1, holds=POLICY.holds)
    assert judge_age(ancient, POLICY, moment()).action is Action.HOLD
    assert judge_size(ancient, large, moment(), 10**12).action is Action.HOLD


def test_a_hold_needs_its_value() -> None:
    other = candidate(181 * DAY, {"customer": "other"})
    assert judge_age(other, POLICY, moment()).action is Action.DELETE


def test_a_generation_waits_for_an_export_up_to_the_hard_cap() -> None:
    behind = moment(read_position=19)
    for age_s, action in (
        (180 * DAY, Action.WAIT),
        (187 * DAY - 1, Action.WAIT),
        (187 * DAY, Action.DELETE_UNREAD),
    ):
        assert judge_age(candidate(age_s), POLICY, behind).action is action
    assert judge_age(candidate(180 * DAY), POLICY, moment(read_position=20)).action is Action.DELETE


def test_by_size_a_generation_waits_for_an_export_up_to_a_quarter_more() -> None:
    policy, behind = RetentionPolicy(max_bytes=1_000_000), moment(read_position=19)
    assert judge_size(candidate(1), policy, behind, 1_249_999).action is Action.WAIT
    unread = judge_size(candidate(1), policy, behind, 1_250_000)
    assert unread == Verdict(Action.DELETE_UNREAD, "--retain-bytes 1MB")
    assert judge_size(candidate(1), policy, moment(), 1_000_001).action is Action.DELETE


def test_what_this_process_recorded_lately_is_kept_whatever_its_date() -> None:
    ancient = candidate(50 * 365 * DAY)
    assert judge_age(ancient, POLICY, moment(old_position=9)).action is Action.KEEP
    assert judge_age(ancient, POLICY, moment(old_position=10)).action is Action.DELETE


def test_a_policy_follows_labels_that_are_stored_in_another_way() -> None:
    def spell(pattern: LabelPattern) -> list[LabelPattern]:
        value = pattern.value if pattern.value == "*" else pattern.value[::-1]
        return [pattern, LabelPattern(pattern.name[::-1], value)]

    policy = POLICY.respell(spell)
    for labels in ({"env": "test"}, {"vne": "tset"}):
        old = candidate(7 * DAY, labels)
        assert judge_age(old, policy, moment()) == Verdict(
            Action.DELETE, "--retain-label env=test=7d"
        )
    for labels in ({"matter": "x"}, {"rettam": "y"}, {"remotsuc": "emca"}):
        assert judge_age(candidate(900 * DAY, labels), policy, moment()).action is Action.HOLD


# ---- clocks ----


class Clocks:
    """A wall clock that can be set, and elapsed time."""

    def __init__(self) -> None:
        self.wall_ns, self.elapsed_ns = NOW, 5 * S

    def pass_time(self, seconds: float) -> None:
        self.wall_ns += int(seconds * S)
        self.elapsed_ns += int(seconds * S)

    def make(self, newest_ns: int | None) -> RetentionClock:
        return RetentionClock(newest_ns, lambda: self.wall_ns, lambda: self.elapsed_ns)


def test_a_clock_without_jumps_is_followed() -> None:
    clocks = Clocks()
    clock = clocks.make(NOW - 60 * S)
    for _ in range(300):
        clocks.pass_time(60)
        clocks.wall_ns += S  # a slow drift is no jump, however long it lasts
        assert clock.read() == clocks.wall_ns


def test_a_jump_forward_counts_after_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    clocks = Clocks()
    clock = clocks.make(NOW)
    assert clock.read() == NOW
    clocks.wall_ns += 365 * DAY * S
    assert clock.read() == NOW
    assert "8760.0 hours ahead" in caplog.text
    clocks.pass_time(JUMP_S - 1)
    assert clock.read() == NOW + (JUMP_S - 1) * S
    clocks.pass_time(1)
    assert clock.read() == clocks.wall_ns
    assert len(caplog.records) == 1


def test_a_jump_forward_that_is_taken_back_never_counts() -> None:
    clocks = Clocks()
    clock = clocks.make(NOW)
    for _ in range(50):
        clocks.wall_ns += 365 * DAY * S
        clock.read()
        clocks.pass_time(HOUR / 2)
        assert clock.read() < NOW + 3 * DAY * S
        clocks.wall_ns -= 365 * DAY * S
        assert clock.read() == clocks.wall_ns
        clocks.pass_time(HOUR / 2)


def test_a_jump_back_counts_at_once() -> None:
    clocks = Clocks()
    clock = clocks.make(NOW)
    clocks.wall_ns -= 365 * DAY * S
    assert clock.read() == clocks.wall_ns


def test_at_the_start_time_goes_on_from_the_newest_generation() -> None:
    clocks = Clocks()
    clock = clocks.make(NOW - 30 * DAY * S)
    assert clock.read() == NOW - 30 * DAY * S
    clocks.pass_time(JUMP_S)
    assert clock.read() == clocks.wall_ns
    empty = clocks.make(None)
    assert empty.read() == clocks.wall_ns


def test_positions_are_as_old_as_elapsed_time_says() -> None:
    elapsed = [0]
    ages = PositionAges(50, lambda: elapsed[0])
    appended = {0: 50}
    for minute in range(1, 60 * 24 * 4):
        elapsed[0] = minute * 60 * S
        appended[minute] = 50 + 7 * minute
        ages.note(appended[minute])
    now = max(appended)
    for age_minutes in (0, 1, 59, 179, 180, 181, 600, 60 * 24, 60 * 24 * 3 + 17, now - 1):
        found = ages.find_position(age_minutes * 60 * S)
        assert found <= appended[now - age_minutes]
        # At most an hour's positions are taken for younger than they are.
        assert found >= appended[max(now - age_minutes - 61, 0)]
    assert ages.find_position(10 * 365 * DAY * S) == 50
    assert len(ages._times) < 300


def test_positions_are_noted_once_a_minute() -> None:
    elapsed = [0]
    ages = PositionAges(0, lambda: elapsed[0])
    for second in range(600):
        elapsed[0] = second * S
        ages.note(second)
    assert len(ages._times) == 10
