"""A destination that refuses everything costs no span; one that refuses some loses only these."""

import itertools
import random
from collections.abc import Callable

import pytest
from delivery_cases import LONG_PATIENCE, Case, failing_over, piece

from whence_server.telemetry.export.outcomes import (
    Accepted,
    Failed,
    Misconfigured,
    Outcome,
    Refused,
    TooLarge,
    TryAgain,
)

REFUSED = Refused("INVALID_ARGUMENT: no")
ANSWERS = [
    REFUSED,
    TooLarge("413"),
    TooLarge("RESOURCE_EXHAUSTED: busy", certain=False),
    Failed("INTERNAL: no"),
    Misconfigured("UNIMPLEMENTED: no"),
    TryAgain("UNAVAILABLE: no"),
    Accepted(1_000, "no"),
]
NAMES = [f"s{number}" for number in range(24)]


@pytest.mark.parametrize("first", [1, 2, 40])
@pytest.mark.parametrize("answer", ANSWERS, ids=str)
async def test_a_destination_that_refuses_everything_loses_no_span(answer, first):
    case = Case(lambda _, number: answer if first <= number < 5_000 else Accepted())
    for begin in range(0, 24, 8):
        await case.deliver(*NAMES[begin : begin + 8])
    assert set(case.collector.taken) >= set(NAMES)
    assert case.stats.num_set_aside == case.stats.num_rejected == 0


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 40])
@pytest.mark.parametrize("answer", [REFUSED, Failed("broken"), TryAgain("away")], ids=str)
async def test_a_destination_that_refuses_for_a_time_loses_no_span(answer, length):
    for seed in range(20):
        case = Case(lambda _, n: answer if n // length % 2 else Accepted(), seed)
        for begin in range(0, 24, 4):
            await case.deliver(*NAMES[begin : begin + 4])
        assert set(case.collector.taken) == set(NAMES)
        assert case.stats.num_set_aside == 0


REPLICAS = [
    pattern
    for length in range(2, 8)
    for pattern in itertools.product([True, False], repeat=length)
    if any(pattern) and not all(pattern)
]


async def test_replicas_behind_a_balancer_that_partly_refuse_lose_no_span():
    """Replicas in turns could look like a proof against a span."""
    for seed, pattern in enumerate(REPLICAS):
        case = Case(lambda _, n, of=pattern: Accepted() if of[n % len(of)] else REFUSED, seed)
        for begin in range(0, 24, 4):
            await case.deliver(*NAMES[begin : begin + 4])
        assert set(case.collector.taken) == set(NAMES), pattern
        assert case.stats.num_set_aside == 0, pattern


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.95])
async def test_a_destination_that_refuses_at_random_loses_no_span(share):
    for seed in range(10):
        chance = random.Random(seed)
        case = Case(lambda _, __, of=chance: REFUSED if of.random() < share else Accepted(), seed)
        await case.deliver(*NAMES)
        assert set(case.collector.taken) == set(NAMES)
        assert case.stats.num_set_aside == 0


@pytest.mark.parametrize("num_down", range(1, 12))
async def test_a_restart_between_suspect_and_witness_proves_nothing(num_down):
    """After each refusal the collector is away for a while, and comes back mended."""
    refused_at = 0

    def answer(names: list[str], number: int) -> Outcome:
        nonlocal refused_at
        if "b" in names and not refused_at:
            refused_at = number
            return REFUSED
        return TryAgain("away") if number <= refused_at + num_down else Accepted()

    case = Case(answer)
    await case.deliver("a")
    await case.deliver("b")
    assert set(case.collector.taken) == {"a", "b"}
    assert case.stats.num_set_aside == 0


async def test_a_destination_that_accepts_only_known_spans_proves_nothing():
    """A tenant's limit on live traces has this effect."""
    case = Case(
        lambda names, n: Accepted() if n > 3_000 or names == ["a"] else Refused("max live traces")
    )
    await case.deliver("a")
    await case.deliver("b", "c", "d")
    assert set(case.collector.taken) == set("abcd")
    assert case.stats.num_set_aside == 0


@pytest.mark.parametrize(
    "answer", [answer for answer in ANSWERS if answer != TryAgain("UNAVAILABLE: no")], ids=str
)
@pytest.mark.parametrize("poison", [["s0"], ["s23"], ["s0", "s1", "s2", "s3"], NAMES[:20]])
async def test_bad_spans_are_set_aside_while_others_pass(answer, poison):
    case = Case(failing_over(*poison, outcome=answer))
    await case.deliver(*NAMES)
    assert set(case.collector.taken) == set(NAMES) - set(poison)
    assert case.stats.num_set_aside == len(poison)


def behind(*names: str) -> Callable[[], object]:
    chance = random.Random(1)

    async def others() -> bytes | None:
        return piece(chance.choice(names)) if names else None

    return others


async def test_a_whole_batch_of_bad_spans_at_the_head_of_a_backlog_is_found():
    poison = NAMES[:16]
    case = Case(failing_over(*poison, outcome=REFUSED))
    await case.deliver(*poison, others=behind(*NAMES[8:]))
    assert case.stats.num_set_aside == 16
    await case.deliver(*NAMES[16:])
    assert set(case.collector.taken) == set(NAMES[16:])


async def test_a_bad_span_is_held_until_another_span_arrives():
    case = Case(failing_over("bad", outcome=REFUSED))
    asked = 0

    async def others() -> bytes | None:
        nonlocal asked
        asked += 1
        return piece("new") if asked > 200 else None

    await case.deliver("bad", others=others)
    assert asked > 200
    assert case.stats.num_set_aside == 1
    assert not case.stats.refusing


async def test_a_known_span_is_the_witness_after_long_without_a_new_one():
    case = Case(failing_over("bad", outcome=REFUSED))
    await case.deliver("good")
    await case.deliver("bad")
    assert case.stats.num_set_aside == 1
    assert len(case.slept) == LONG_PATIENCE
    assert sum(case.slept) > 600


async def test_a_refusing_destination_is_logged_once_and_shown_until_it_accepts_again(caplog):
    states = []

    def answer(_: list[str], number: int) -> Outcome:
        states.append(case.stats.refusing)
        return Refused(f"INVALID_ARGUMENT: no {number}") if number < 500 else Accepted()

    case = Case(answer)
    await case.deliver("a", "b", "c")
    assert all(states[10:500])
    assert not case.stats.refusing
    assert caplog.text.count("the destination accepts no spans") == 1
    assert caplog.text.count("accepts spans again") == 1


async def test_a_span_that_is_set_aside_is_named_in_log_and_stats(caplog):
    case = Case(failing_over("s3", outcome=REFUSED))
    await case.deliver(*NAMES)
    (named,) = case.stats.newest_set_aside
    assert named == f"span {bytes(8).hex()} (s3) of trace "
    assert f"{named} is set aside: INVALID_ARGUMENT: no" in caplog.text
