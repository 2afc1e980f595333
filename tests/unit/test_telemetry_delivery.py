"""Delivery of batches: retries, splitting, and giving up single spans."""

import random

import pytest
from delivery_cases import LONG_PATIENCE, PATIENCE, Case, failing_over

from whence_server.telemetry.export.outcomes import (
    Accepted,
    Failed,
    Misconfigured,
    Outcome,
    TooLarge,
    TryAgain,
)

SAYS_NOTHING = [TryAgain("away"), Misconfigured("who are you?")]
"""Against the spans."""


async def test_a_failing_collector_is_retried_for_minutes_before_a_batch_is_split():
    case = Case(failing_over("b"))
    await case.deliver("a")
    await case.deliver("a1", "b", "c", "d")
    first_half = case.collector.requests.index(["a1", "b"])
    waits = case.slept[: PATIENCE - 1]
    assert case.collector.requests[1:first_half] == [["a1", "b", "c", "d"]] * PATIENCE
    assert sum(waits) >= 120
    assert list(dict.fromkeys(case.collector.taken)) == ["a", "a1", "c", "d"]
    assert case.stats.num_set_aside == 1


async def test_a_collector_that_fails_on_everything_loses_no_span():
    case = Case(lambda _, number: Failed("broken") if 1 < number < 1_000 else Accepted())
    await case.deliver("a")
    await case.deliver("b", "c")
    await case.deliver("d")
    assert set(case.collector.taken) == set("abcd")
    assert case.stats.num_set_aside == 0


async def test_a_single_span_is_held_until_a_failing_collector_recovers():
    case = Case(lambda _, number: Failed("broken") if 1 < number < 1_000 else Accepted())
    await case.deliver("a")
    await case.deliver("b")
    assert list(dict.fromkeys(case.collector.taken)) == ["a", "b"]
    assert case.stats.num_set_aside == 0


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
async def test_a_collector_that_fails_at_random_loses_no_span(share, seed):
    """Some bad replicas: a failure beside a success proves nothing."""
    chance = random.Random(seed)
    case = Case(lambda _, __: Failed("broken") if chance.random() < share else Accepted())
    names = [f"s{number}" for number in range(64)]
    for begin in range(0, 64, 8):
        await case.deliver(*names[begin : begin + 8])
    assert set(case.collector.taken) == set(names)
    assert case.stats.num_set_aside == 0


async def test_only_the_bad_span_is_set_aside_while_the_collector_fails_at_random():
    chance = random.Random(1)
    poison = failing_over("s20", "s21")
    case = Case(lambda names, n: Failed("broken") if chance.random() < 0.3 else poison(names, n))
    names = [f"s{number}" for number in range(32)]
    await case.deliver(*names[:16])
    await case.deliver(*names[16:])
    assert set(case.collector.taken) == set(names) - {"s20", "s21"}
    assert case.stats.num_set_aside == 2


async def test_a_bad_span_at_the_start_is_set_aside():
    case = Case(failing_over("a"))
    await case.deliver("a", "b")
    await case.deliver("c")
    assert set(case.collector.taken) == {"b", "c"}
    assert case.stats.num_set_aside == 1


@pytest.mark.parametrize("outcome", SAYS_NOTHING)
async def test_an_unreachable_collector_loses_no_span(outcome):
    for first in (1, 2):
        case = Case(
            lambda _, number, first=first: outcome if first <= number < 2_000 else Accepted()
        )
        await case.deliver("a")
        await case.deliver("b", "c")
        await case.deliver("d")
        assert set(case.collector.taken) == set("abcd")
        assert case.stats.num_set_aside == 0


@pytest.mark.parametrize("outcome", SAYS_NOTHING)
async def test_a_batch_with_other_errors_is_split_after_long_patience(outcome):
    case = Case(failing_over("b", outcome=outcome))
    await case.deliver("a")
    await case.deliver("a1", "b", "c", "d")
    whole = ["a1", "b", "c", "d"]
    first_half = case.collector.requests.index(["a1", "b"])
    assert case.collector.requests[1:first_half] == [whole] * LONG_PATIENCE
    assert sum(case.slept[:LONG_PATIENCE]) >= 300
    assert list(dict.fromkeys(case.collector.taken)) == ["a", "a1", "c", "d"]
    assert case.stats.num_set_aside == 1


@pytest.mark.parametrize("poison", [["a"], ["d"], ["a", "d"], ["b", "c", "d"]])
async def test_bad_spans_of_the_first_batch_are_set_aside(poison):
    case = Case(failing_over(*poison, outcome=TryAgain("away")))
    await case.deliver("a", "b", "c", "d")
    assert set(case.collector.taken) == set("abcd") - set(poison)
    assert case.stats.num_set_aside == len(poison)


async def test_a_collector_that_a_span_crashes_may_restart_slowly():
    up_again = 0

    def answer(names: list[str], number: int) -> Outcome:
        nonlocal up_again
        if number < up_again:
            return TryAgain("connection refused")
        if "b" in names:
            up_again = number + 7
            return TryAgain("connection reset")
        return Accepted()

    case = Case(answer)
    await case.deliver("a")
    await case.deliver("b", "c")
    assert list(dict.fromkeys(case.collector.taken)) == ["a", "c"]
    assert case.stats.num_set_aside == 1


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
async def test_a_collector_that_is_unreachable_at_random_loses_no_span(share, seed):
    chance = random.Random(seed)
    case = Case(lambda _, __: TryAgain("busy") if chance.random() < share else Accepted())
    names = [f"s{number}" for number in range(64)]
    for begin in range(0, 64, 8):
        await case.deliver(*names[begin : begin + 8])
    assert set(case.collector.taken) == set(names)
    assert case.stats.num_set_aside == 0


async def test_a_request_that_is_too_large_is_halved_at_once():
    case = Case(lambda names, _: TooLarge("large") if len(names) > 1 else Accepted())
    await case.deliver("a", "b", "c")
    assert case.collector.taken == ["a", "b", "c"]
    assert case.slept == []


async def test_a_span_that_is_too_large_is_set_aside_at_once():
    case = Case(lambda names, _: TooLarge("large") if "b" in names else Accepted())
    await case.deliver("a", "b", "c")
    assert set(case.collector.taken) == {"a", "c"}
    assert (case.stats.num_set_aside, case.slept) == (1, [])


async def test_an_overloaded_collector_that_reports_its_limits_loses_no_span():
    busy = TooLarge("RESOURCE_EXHAUSTED: busy", certain=False)
    case = Case(lambda _, number: busy if 1 < number < 500 else Accepted())
    await case.deliver("a")
    await case.deliver("b", "c", "d")
    assert set(case.collector.taken) == set("abcd")
    assert case.stats.num_set_aside == 0


async def test_each_reason_is_logged_once_while_a_collector_is_unreachable(caplog):
    case = Case(lambda _, number: TryAgain("away") if number < 100 else Accepted())
    await case.deliver("a")
    assert caplog.text.count("spans are held") == 1
    assert case.stats.num_retries == 99
    assert max(case.slept) <= 30
