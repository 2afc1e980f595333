"""Limits of each caller: what is counted, what is given back, and that others are not touched."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from dying_engine import DyingEngine, request, service
from waiting import wait_until

from whence_server.domain.decoding import DecodingRequest
from whence_server.domain.errors import CallerLimitError, GenerationExistsError
from whence_server.domain.limits import CallerLimits
from whence_server.domain.requests import GenerationRequest
from whence_server.generation.quotas import Quotas


class Account:
    """Quotas with a clock of their own, and generations that are numbers alone."""

    def __init__(self, **limits: int) -> None:
        self.now_s = 1_000.0
        self.running: dict[str, Any] = {}
        self.quotas = Quotas(CallerLimits(**limits), self.running, lambda: self.now_s)

    def start(self, caller: str, *, prompt: int = 1, most: int = 1, rows: int = 1) -> Any:
        with self.quotas.start(caller, rows):
            decoding = SimpleNamespace(max_new_tokens=most, num_rows=rows)
            started = SimpleNamespace(
                owner=caller, prompt_token_ids=[0] * prompt, decoding=decoding
            )
            generation = SimpleNamespace(
                id=str(len(self.running)), started=started, waiting=True, num_used_tokens=prompt
            )
            self.running[generation.id] = generation
            self.quotas.reserve(generation)
            return generation

    def end(self, generation: Any, num_tokens: int = 0) -> None:
        generation.num_used_tokens += num_tokens
        del self.running[generation.id]
        self.quotas.settle(generation)
        self.quotas.settle(generation)  # as a generation may be forgotten twice


def refuse(account: Account, caller: str, **wanted: int) -> CallerLimitError:
    with pytest.raises(CallerLimitError) as caught:
        account.start(caller, **wanted)
    return caught.value


def test_generations_of_one_caller_are_limited() -> None:
    account = Account(max_generations=2)
    first = account.start("a")
    account.start("a")
    error = refuse(account, "a")
    assert error.message == (
        "this caller has 2 generations that run or wait, and 2 is the limit of each caller "
        "(--caller-max-generations); try again in 1 s"
    )
    account.start("b")
    account.end(first)
    account.start("a")


def test_generations_that_are_prepared_count_too() -> None:
    account = Account(max_generations=2, max_queue=3)
    with account.quotas.start("a", 2):
        with pytest.raises(CallerLimitError, match="caller-max-queue"):
            account.start("a", rows=2)
        with account.quotas.start("a", 1):
            assert "2 generations" in refuse(account, "a").message
            account.start("b", rows=2)
    assert not account.quotas._starting


def test_places_in_the_queue_of_one_caller_are_limited() -> None:
    account = Account(max_queue=4)
    large = account.start("a", rows=9)
    assert "9 sequences that wait, and 4 is the limit" in refuse(account, "a").message
    large.waiting = False
    account.start("a", rows=3)
    account.start("a")
    refuse(account, "a")
    account.start("b")


def test_tokens_are_reserved_and_given_back() -> None:
    account = Account(tokens_per_minute=60)
    first = account.start("a", prompt=10, most=100)
    error = refuse(account, "a")
    assert "used its tokens of this minute, and 60 is the limit" in error.message
    assert error.retry_after_s == pytest.approx(51)
    account.start("b")
    account.end(first, num_tokens=20)  # 30 are used, and 30 are left
    account.start("a", prompt=10, most=20)
    refuse(account, "a")
    account.now_s += 1
    account.start("a")


def test_requests_that_are_prepared_reserve_what_they_may_need() -> None:
    account = Account(tokens_per_minute=60)
    wanted = GenerationRequest("x", "", decoding=DecodingRequest(max_new_tokens=20))
    with account.quotas.start("a", 2, wanted):
        account.start("a")
        with account.quotas.start("a", 1, dataclasses.replace(wanted, size_bytes=80)):
            assert "used its tokens of this minute" in refuse(account, "a").message
        account.start("b")
    account.start("a")
    assert not account.quotas._starting_tokens
    # Without a number of its own, a request may generate as many as the default.
    with account.quotas.start("a", 1, GenerationRequest("x", "")):
        refuse(account, "a")


def test_tokens_beyond_a_reservation_are_taken_at_the_end() -> None:
    account = Account(tokens_per_minute=60)
    # An upstream that decides by itself when it ends, and counts the prompt.
    without_bound = account.start("a", prompt=0, most=0)
    account.start("a", prompt=0, most=0)
    account.end(without_bound, num_tokens=120)
    assert refuse(account, "a").retry_after_s == pytest.approx(61)
    account.start("b")


def test_bucket_fills_evenly_and_not_beyond_a_minute() -> None:
    account = Account(tokens_per_minute=60)
    account.end(account.start("a", prompt=60, most=60), num_tokens=60)
    account.now_s += 59
    assert refuse(account, "a").retry_after_s == pytest.approx(2)
    account.now_s += 2
    account.end(account.start("a", prompt=1, most=1), num_tokens=1)
    account.now_s += 3_600
    account.end(account.start("a", prompt=60, most=10))
    refuse(account, "a")
    account.now_s += 3_600
    account.quotas._check_tokens("a")
    assert not account.quotas._missing, "nothing is kept of a caller whose bucket is full"


async def test_requests_of_a_caller_at_its_limit_are_refused_until_one_ends(
    tmp_path: Path,
) -> None:
    engine = DyingEngine(deaths=[])
    run = await service(tmp_path, engine, per_caller=CallerLimits(max_generations=1))
    first = await run.start(request(1, 5_000), "alice")
    with pytest.raises(CallerLimitError):
        await run.start(request(2), "alice")
    await run.finished(await run.start(request(3), "bob"))
    await run.finished(first)
    await wait_until(lambda: run.generations.num_running == 0)
    await run.finished(await run.start(request(2), "alice"))
    await run.close()


async def test_equal_request_joins_only_its_own_callers_generation(tmp_path: Path) -> None:
    run = await service(
        tmp_path, DyingEngine(deaths=[]), per_caller=CallerLimits(max_generations=1)
    )
    wanted = dataclasses.replace(
        request(1, 2_000), generation_id="00000000-0000-4000-8000-000000000001"
    )
    first = await run.start(wanted, "alice")
    assert await run.start(wanted, "alice") == first, "joining is no generation more"
    for other in ("bob", ""):
        with pytest.raises(GenerationExistsError):
            await run.start(wanted, other)
    await run.finished(first)
    await run.close()


async def test_longest_grace_bounds_what_requests_ask_for(tmp_path: Path) -> None:
    run = await service(tmp_path, DyingEngine(deaths=[]), longest_grace_s=2.0)
    for asked_s, given_s in ((3_600.0, 2.0), (1.0, 1.0)):
        wanted = dataclasses.replace(request(1, 5_000), disconnect_grace_s=asked_s)
        running = run.generations._running[await run.start(wanted)]
        assert running.grace_s == given_s
    await run.close()
