"""The scheduler by itself: limits, fairness, and release of resources."""

from contextlib import nullcontext
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence_server.domain.errors import GenerationFailedError
from whence_server.engines.transformers.fair_queue import FairQueue
from whence_server.engines.transformers.scheduler import Chunk, Scheduler


def scheduler(
    batch: int = 4, cache: int = 1000, chunk: int = 10, *, whole_prompts: bool = False
) -> Scheduler:
    return Scheduler(
        max_batch_size=batch,
        max_cache_tokens=cache,
        prefill_chunk_tokens=chunk,
        whole_prompts=whole_prompts,
    )


def test_a_long_prompt_is_read_in_chunks() -> None:
    s = scheduler(chunk=10)
    s.admit("a", 25, 5, 1)
    assert [s.take_chunks() for _ in range(4)] == [
        [Chunk("a", 10, False)],
        [Chunk("a", 10, False)],
        [Chunk("a", 5, True)],
        [],
    ]


def test_short_prompts_share_a_turn() -> None:
    s = scheduler(chunk=10)
    for name in "abcd":
        s.admit(name, 4, 5, 1)
    assert s.take_chunks() == [Chunk("a", 4, True), Chunk("b", 4, True), Chunk("c", 2, False)]
    assert s.take_chunks() == [Chunk("c", 2, True), Chunk("d", 4, True)]


def test_tokens_that_need_not_be_read_leave_room_for_other_prompts() -> None:
    s = scheduler(chunk=10)
    for name in "ab":
        s.admit(name, 20, 5, 1)
    assert s.list_prefilling() == ["a", "b"]
    s.skip("a", 16)
    assert s.take_chunks() == [Chunk("a", 4, True), Chunk("b", 6, False)]
    assert s.list_prefilling() == ["b"]
    s.skip("b", 13)
    assert s.take_chunks() == [Chunk("b", 1, True)]
    assert s.list_prefilling() == []


def test_a_prompt_that_is_held_gets_its_chunk_later() -> None:
    s = scheduler(chunk=10)
    for name in "ab":
        s.admit(name, 12, 5, 1)
    assert s.take_chunks(held=["a"]) == [Chunk("b", 10, False)]
    assert s.take_chunks(held=["a", "b"]) == []
    assert s.take_chunks() == [Chunk("b", 2, True), Chunk("a", 8, False)]


def test_no_token_of_a_whole_prompt_is_skipped() -> None:
    s = scheduler(whole_prompts=True)
    s.admit("a", 20, 5, 1)
    assert s.list_prefilling() == []
    assert s.take_chunks() == [Chunk("a", 20, True)]


def test_tokens_read_one_by_one_share_turns_with_other_prompts() -> None:
    s = scheduler(chunk=10, whole_prompts=True)
    s.admit("again", 45, 5, 1, num_whole=12)
    s.admit("new", 3, 5, 1)
    assert s.take_chunks() == [Chunk("again", 12, False)]
    assert s.take_chunks() == [Chunk("again", 16, False), Chunk("new", 3, True)]
    assert s.take_chunks() == [Chunk("again", 16, False)]
    assert s.take_chunks() == [Chunk("again", 1, True)]
    assert s.take_chunks() == []


def test_whole_prompts_share_a_turn_that_can_read_all_of_them() -> None:
    s = scheduler(chunk=10, whole_prompts=True)
    for name, length in zip("abcd", (4, 6, 4, 7), strict=True):
        s.admit(name, length, 5, 1)
    assert s.take_chunks() == [Chunk("a", 4, True), Chunk("b", 6, True)]
    assert s.take_chunks() == [Chunk("c", 4, True)]
    assert s.num_sequences == 3, "the next one waits outside"
    assert s.take_chunks() == [Chunk("d", 7, True)]
    assert s.take_chunks() == []


def test_a_whole_prompt_longer_than_a_chunk_has_its_own_turn() -> None:
    s = scheduler(chunk=10, whole_prompts=True)
    for name, length in zip("abc", (1, 25, 1), strict=True):
        s.admit(name, length, 5, 1)
    assert [s.take_chunks() for _ in range(4)] == [
        [Chunk("a", 1, True)],
        [Chunk("b", 25, True)],
        [Chunk("c", 1, True)],
        [],
    ]


def test_all_sequences_of_a_generation_are_admitted_together() -> None:
    s = scheduler(batch=4)
    s.admit("a", 1, 1, 2)
    s.admit("b", 1, 1, 3)
    assert s.take_chunks() == [Chunk("a", 1, True)]
    s.leave_sequence("a")
    assert s.take_chunks() == [Chunk("b", 1, True)]
    assert s.num_sequences == 4


def test_jobs_are_admitted_in_the_order_of_the_queue() -> None:
    s = scheduler(batch=8, cache=100)
    s.admit("running", 10, 40, 1)
    s.take_chunks()
    s.admit("large", 40, 50, 1)
    s.admit("small", 1, 1, 1)
    assert s.take_chunks() == []
    s.leave("running")
    assert s.take_chunks() == [Chunk("large", 10, False)]


def test_padding_counts_against_the_cache() -> None:
    s = scheduler(batch=8, cache=100)
    s.admit("long", 1, 59, 1)
    s.admit("short", 1, 1, 1)
    s.take_chunks()
    # 60 + 2 would fit; two rows of the wider one's 60 columns would not.
    assert s.num_cache_tokens == 60


@pytest.mark.parametrize(
    ("num_prompt_tokens", "num_new_tokens", "num_sequences", "reason"),
    [
        (1, 1, 5, "BATCH_TOO_SMALL"),
        (900, 101, 1, "CACHE_TOO_SMALL"),
        (1, 300, 4, "CACHE_TOO_SMALL"),
    ],
)
def test_a_job_that_could_never_fit_is_refused(
    num_prompt_tokens: int, num_new_tokens: int, num_sequences: int, reason: str
) -> None:
    s = scheduler(batch=4, cache=1000)
    with pytest.raises(GenerationFailedError) as caught:
        s.admit("a", num_prompt_tokens, num_new_tokens, num_sequences)
    assert caught.value.reason == reason
    assert s.is_idle


def test_a_short_prompt_does_not_wait_for_a_long_one_and_the_long_one_goes_on() -> None:
    s = scheduler(batch=100, chunk=16)
    s.admit("long", 100, 5, 1)
    assert s.take_chunks() == [Chunk("long", 16, False)]
    s.admit("short", 3, 5, 1)
    s.admit("middle", 20, 5, 1)
    assert s.take_chunks() == [
        Chunk("short", 3, True),
        Chunk("long", 8, False),
        Chunk("middle", 5, False),
    ]
    given = []
    for number in range(8):
        # However many short ones keep coming.
        s.admit(str(number), 16, 5, 1)
        given += [chunk.num_tokens for chunk in s.take_chunks() if chunk.job_id == "long"]
    assert given == [8] * 8


def test_equal_prompts_are_read_one_after_the_other() -> None:
    s = scheduler(batch=100, chunk=16)
    for name in "abc":
        s.admit(name, 24, 5, 1)
    assert s.take_chunks() == [Chunk("a", 16, False)]
    assert s.take_chunks() == [Chunk("a", 8, True), Chunk("b", 8, False)]


def test_a_job_can_leave_during_prefill() -> None:
    s = scheduler(chunk=10)
    s.admit("a", 25, 5, 1)
    s.admit("b", 12, 5, 1)
    assert s.take_chunks() == [Chunk("a", 5, False), Chunk("b", 5, False)]
    s.leave("a")
    assert s.take_chunks() == [Chunk("b", 7, True)]


@dataclass
class Simulated:
    num_prompt_tokens: int
    num_new_tokens: int
    num_sequences: int
    patience: int | None
    num_read: int = 0
    num_made: int = 0


generations = st.builds(
    Simulated,
    num_prompt_tokens=st.integers(1, 40),
    num_new_tokens=st.integers(1, 12),
    num_sequences=st.integers(1, 5),
    patience=st.none() | st.integers(0, 12),
)


class Simulation:
    """Driver of a scheduler, as in the loop, that checks the limits in every turn."""

    max_batch_size, max_cache_tokens, chunk_tokens = 6, 150, 16

    def __init__(self, *, whole_prompts: bool) -> None:
        self.whole_prompts = whole_prompts
        self.scheduler = Scheduler(
            self.max_batch_size,
            self.max_cache_tokens,
            self.chunk_tokens,
            whole_prompts=whole_prompts,
        )
        self.alive: dict[str, Simulated] = {}
        self.decoding: dict[str, Simulated] = {}
        self.admitted: list[str] = []
        self.entered: list[str] = []

    def admit(self, name: str, generation: Simulated) -> None:
        length = generation.num_prompt_tokens + generation.num_new_tokens
        fits = (
            generation.num_sequences <= self.max_batch_size
            and generation.num_sequences * length <= self.max_cache_tokens
        )
        with nullcontext() if fits else pytest.raises(GenerationFailedError):
            self.scheduler.admit(
                name,
                generation.num_prompt_tokens,
                generation.num_new_tokens,
                generation.num_sequences,
            )
            self.alive[name] = generation
            self.admitted.append(name)

    def cancel_the_impatient(self) -> None:
        for name, generation in list(self.alive.items()):
            if generation.patience is not None:
                generation.patience -= 1
                if generation.patience < 0:
                    self.scheduler.leave(name)
                    del self.alive[name]
                    self.decoding.pop(name, None)

    def step(self) -> None:
        for name, generation in list(self.decoding.items()):
            generation.num_made += 1
            if generation.num_made == generation.num_new_tokens:
                for _ in range(generation.num_sequences):
                    self.scheduler.leave_sequence(name)
                del self.decoding[name], self.alive[name]

    def prefill(self) -> None:
        before = self.reading()
        chunks = self.scheduler.take_chunks()
        self.entered += [name for name in self.scheduler.job_ids if name not in self.entered]
        self.check_first_goes_on(before, chunks)
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        if self.whole_prompts:
            assert all(chunk.is_last for chunk in chunks)
            assert num_tokens <= self.chunk_tokens or len(chunks) == 1
        else:
            assert num_tokens <= self.chunk_tokens
        for chunk in chunks:
            generation = self.alive[chunk.job_id]
            assert chunk.num_tokens > 0
            generation.num_read += chunk.num_tokens
            assert chunk.is_last == (generation.num_read == generation.num_prompt_tokens)
            if chunk.is_last:
                self.decoding[chunk.job_id] = generation

    def reading(self) -> list[str]:
        return [name for name in self.scheduler.job_ids if name not in self.decoding]

    def check_first_goes_on(self, before: list[str], chunks: list[Chunk]) -> None:
        """Check that the prompt admitted first gets half of the turn, or all that it needs."""
        for name in before[:1]:
            left = self.alive[name].num_prompt_tokens - self.alive[name].num_read
            (given,) = [chunk.num_tokens for chunk in chunks if chunk.job_id == name]
            assert given >= min(left, self.chunk_tokens // 2)

    def check_bounds(self) -> None:
        admitted = [self.alive[name] for name in self.scheduler.job_ids]
        num_sequences = sum(generation.num_sequences for generation in admitted)
        widest = max((g.num_prompt_tokens + g.num_new_tokens for g in admitted), default=0)
        assert self.scheduler.num_sequences == num_sequences <= self.max_batch_size
        assert self.scheduler.num_cache_tokens == widest * num_sequences <= self.max_cache_tokens


@given(st.lists(st.tuples(st.integers(0, 3), generations), max_size=30), st.booleans())
def test_scheduling_is_bounded_fair_and_frees_everything(
    arrivals: list[tuple[int, Simulated]], whole_prompts: bool
) -> None:
    simulation = Simulation(whole_prompts=whole_prompts)
    arriving = iter(enumerate(arrivals))
    following = next(arriving, None)
    gap = following[1][0] if following else 0
    for _turn in range(5000):
        while following and gap == 0:
            number, (_, generation) = following
            simulation.admit(str(number), generation)
            following = next(arriving, None)
            gap = following[1][0] if following else 0
        gap -= 1 if gap else 0
        simulation.cancel_the_impatient()
        simulation.step()
        simulation.prefill()
        simulation.check_bounds()
        if following is None and simulation.scheduler.is_idle:
            break
    assert not simulation.alive, "everyone runs to its end"
    assert simulation.scheduler.is_idle
    assert simulation.scheduler.num_sequences == 0
    in_order = [name for name in simulation.admitted if name in set(simulation.entered)]
    assert simulation.entered == in_order, "first come, first let in"


def test_callers_take_turns_however_much_each_has_waiting() -> None:
    s = scheduler(batch=1, chunk=10)
    for number in range(100):
        s.admit(f"greedy-{number}", 1, 1, 1, caller="greedy")
    s.admit("one-0", 1, 1, 1, caller="one")
    s.admit("two-0", 1, 1, 1, caller="two")
    s.admit("two-1", 1, 1, 1, caller="two")
    order = []
    for _ in range(7):
        (chunk,) = s.take_chunks()
        order.append(chunk.job_id)
        s.leave(chunk.job_id)
    assert order == ["greedy-0", "one-0", "two-0", "greedy-1", "two-1", "greedy-2", "greedy-3"]


def test_large_job_is_not_overtaken_in_its_turn() -> None:
    s = scheduler(batch=4, chunk=100)
    for number in range(4):
        s.admit(f"small-{number}", 1, 1, 1, caller="small")
    s.take_chunks()
    s.admit("large", 1, 1, 4, caller="large")
    for number in range(4, 8):
        s.admit(f"small-{number}", 1, 1, 1, caller="small")
    for number in range(4):
        assert s.take_chunks() == []
        s.leave(f"small-{number}")
    assert [chunk.job_id for chunk in s.take_chunks()] == ["large"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_queue_keeps_the_order_of_each_caller(operations: list[tuple[str, bool]]) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    waiting: dict[str, list[tuple[str, int]]] = {"a": [], "b": [], "c": []}
    for number, (caller, takes) in enumerate(operations):
        if takes and len(queue):
            job = queue.pop_next()
            assert waiting[job[0]].pop(0) == job
        else:
            queue.append((caller, number), caller)
            waiting[caller].append((caller, number))
        assert sorted(queue) == sorted(job for jobs in waiting.values() for job in jobs)
        assert len(queue) == len(list(queue))
    queue.remove_if(lambda job: job[0] == "a")
    assert sorted(queue) == sorted(waiting["b"] + waiting["c"])
