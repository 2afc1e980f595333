"""Generations over an engine that dies: which ones continue, and which one fails for it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from dying_engine import POISON, DyingEngine, make_reader, request, service, token_of
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence_server.domain.decoding import DecodingRequest, FinishReason, Strategy, TokenInput
from whence_server.domain.engine import (
    BeamSearchDone,
    BeamStep,
    BeamSteps,
    Cost,
    Prefilled,
    PromptReading,
    PromptScored,
    StepMade,
    Turn,
)
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import DrainingError, EngineLostError, QueueFullError
from whence_server.domain.requests import GenerationRequest
from whence_server.domain.steps import Decision
from whence_server.generation.prepare import Prepared
from whence_server.generation.progress import Phase, Progress
from whence_server.generation.running import RunningGeneration
from whence_server.generation.texts import TextProcesses


async def test_generations_continue_with_the_same_tokens_after_an_engines_death(
    tmp_path: Path,
) -> None:
    engine = DyingEngine(deaths=[5, 22, 38])
    run = await service(tmp_path, engine)
    ids = [await run.start(request(first)) for first in range(1, 7)]
    for first, finished in zip(
        range(1, 7), await asyncio.gather(*map(run.finished, ids)), strict=True
    ):
        assert finished.finish_reason == g.FINISH_REASON_LENGTH
        expected = [token_of([first], i) for i in range(20)]
        assert list(finished.sequences[0].token_ids) == expected
    assert engine.num_restarts == 3
    await run.close()


async def test_a_generation_that_kills_the_engine_fails_alone(tmp_path: Path) -> None:
    engine = DyingEngine(deaths=[])
    run = await service(tmp_path, engine)
    firsts = [1, 2, POISON, 3, 4]
    ids = [await run.start(request(first)) for first in firsts]
    results = await asyncio.gather(*map(run.finished, ids))
    reasons = [finished.finish_reason for finished in results]
    ok = g.FINISH_REASON_LENGTH
    assert reasons == [ok, ok, g.FINISH_REASON_FAILED, ok, ok]
    assert results[2].failure.reason == "ENGINE_CRASHED"
    # Killed by it once unsuspected, once on trial beside those cleared, and once alone.
    assert engine.num_restarts == 3
    await run.close()


async def test_a_generation_that_cannot_be_recorded_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RunningGeneration.record_step

    def stumble(running: RunningGeneration, made: StepMade, turn: Turn) -> bool:
        if running.started.prompt_token_ids[0] == 7 and made.index == 5:
            raise ValueError("no such field")
        return record(running, made, turn)

    monkeypatch.setattr(RunningGeneration, "record_step", stumble)
    run = await service(tmp_path, DyingEngine(deaths=[]))
    ids = [await run.start(request(first)) for first in (1, 7, 2)]
    before, culprit, after = await asyncio.gather(*map(run.finished, ids))
    assert culprit.failure.reason == "RECORDING_FAILED"
    assert len(culprit.sequences[0].token_ids) == 5
    for first, finished in ((1, before), (2, after)):
        assert finished.finish_reason == g.FINISH_REASON_LENGTH
        expected = [token_of([first], i) for i in range(20)]
        assert list(finished.sequences[0].token_ids) == expected
    await run.close()


async def test_generations_admitted_during_a_trial_wait_for_its_end(tmp_path: Path) -> None:
    engine = DyingEngine(deaths=[3])
    run = await service(tmp_path, engine)
    first = await run.start(request(1))
    await engine.restarted.wait()
    second = await run.start(request(2))
    for finished in await asyncio.gather(run.finished(first), run.finished(second)):
        assert finished.finish_reason == g.FINISH_REASON_LENGTH
    await run.close()


async def test_losing_the_engine_interrupts_running_generations(tmp_path: Path) -> None:
    run = await service(tmp_path, DyingEngine(deaths=[4], can_restart=False))
    generation_id = await run.start(request(1))
    finished = await run.finished(generation_id)
    assert finished.finish_reason == g.FINISH_REASON_INTERRUPTED
    assert 0 < finished.num_generated_tokens < 20
    with pytest.raises(EngineLostError):
        await run.running
    with pytest.raises(EngineLostError):
        await run.start(request(2))
    await run.close()


async def test_draining_refuses_new_requests_and_waits_for_running_ones(tmp_path: Path) -> None:
    run = await service(tmp_path, DyingEngine(deaths=[]))
    generation_id = await run.start(request(1))
    draining = asyncio.create_task(run.generations.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(DrainingError):
        await run.start(request(2))
    assert (await run.finished(generation_id)).finish_reason == g.FINISH_REASON_LENGTH
    await draining
    await run.close()


async def test_the_queue_counts_generations_whose_prompt_is_not_read(tmp_path: Path) -> None:
    engine = DyingEngine(deaths=[])
    run = await service(tmp_path, engine, max_queue=2)
    run.running.cancel()
    for first in (1, 2):
        await run.start(request(first))
    with pytest.raises(QueueFullError):
        await run.start(request(3))
    await run.close()


async def test_a_request_for_too_many_rows_does_not_fill_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = await service(tmp_path, DyingEngine(deaths=[]))
    asked = asyncio.Event()

    async def prepare(texts: TextProcesses, request: GenerationRequest) -> Prepared:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError(texts, request)

    monkeypatch.setattr(TextProcesses, "prepare", prepare)
    wanted = DecodingRequest(Strategy.SAMPLE, num_return_sequences=2**32 - 1)
    long = GenerationRequest(input="a " * 40, digest="d", decoding=wanted, size_bytes=5_000)
    greedy = asyncio.create_task(run.start(long))
    await asked.wait()
    assert await run.start(request(1))
    greedy.cancel()
    await asyncio.gather(greedy, return_exceptions=True)
    await run.close()


class SlowEngine(DyingEngine):
    """Fake engine that sends the turns that the test gives it, and dies when given an error."""

    def __init__(self) -> None:
        super().__init__([])
        self.turns: asyncio.Queue[Turn | EngineLostError] = asyncio.Queue()
        self.may_restart = asyncio.Event()

    async def read_turns(self) -> AsyncIterator[Turn]:
        while True:
            turn = await self.turns.get()
            if isinstance(turn, EngineLostError):
                raise turn
            yield turn

    async def restart(self) -> None:
        await self.may_restart.wait()
        await super().restart()


async def test_progress_tells_what_a_generation_waits_for(tmp_path: Path) -> None:
    engine = SlowEngine()
    run = await service(tmp_path, engine)
    ids = [await run.start(request(first)) for first in (1, 2, 3)]
    cost = Cost(0, 0, 0, 1)

    async def wait_for(generation_id: str, expected: Progress) -> None:
        await wait_until(lambda: run.generations.get_progress(generation_id) == expected)

    for num_ahead, generation_id in enumerate(ids):
        await wait_for(generation_id, Progress(Phase.QUEUED, num_ahead, 3, 0, 0))
    engine.turns.put_nowait(Turn(cost, prompts_reading=[PromptReading(ids[0], 2)]))
    await wait_for(ids[0], Progress(Phase.READING_PROMPT, 0, 3, 2, 0))
    await wait_for(ids[2], Progress(Phase.QUEUED, 1, 3, 0, 0))
    steps = [StepMade(ids[0], 0, index, Decision(50, -1.0), 3 + index, None) for index in range(2)]
    engine.turns.put_nowait(Turn(cost, prefilled=[Prefilled(ids[0], 0, 0, 2)], steps=steps))
    await wait_for(ids[0], Progress(Phase.GENERATING, 0, 3, 3, 2))
    engine.turns.put_nowait(EngineLostError("signal 9"))
    await wait_for(ids[0], Progress(Phase.ENGINE_RESTARTING, 0, 3, 0, 2))
    engine.may_restart.set()
    await wait_for(ids[0], Progress(Phase.QUEUED, 0, 3, 0, 2))
    await run.generations.cancel(ids[0], make_reader().caller)
    assert run.generations.get_progress(ids[0]) == Progress(Phase.RECORDING)
    await wait_for(ids[1], Progress(Phase.QUEUED, 0, 3, 0, 0))
    await run.close()


class TellingEngine(DyingEngine):
    """Fake engine with all its turns ready: a prompt's decisions, and the end of a search."""

    NUM_STEPS = 400

    def __init__(self) -> None:
        super().__init__([])
        self.num_times = 0

    async def read_turns(self) -> AsyncIterator[Turn]:
        while not self._jobs:
            self._changed.clear()
            await self._changed.wait()
        ((name, (admit, _)),) = self._jobs.items()
        self.num_times += 1
        cost = Cost(0, 0, 0, 1)
        scored = [Decision(token_id, -1.0) for token_id in admit.prompt_token_ids]
        yield Turn(cost, prompt_scored=[PromptScored(name, 0, scored)])
        yield Turn(cost, prefilled=[Prefilled(name, 0, 0, 1)])
        decisions = [Decision(40 + i % 50, -1.0) for i in range(self.NUM_STEPS)]
        steps = [BeamStep(decision, i, cost) for i, decision in enumerate(decisions)]
        half = self.NUM_STEPS // 2
        yield Turn(cost, beam_steps=[BeamSteps(name, 0, 0, steps[:half], -1.0, None)])
        if self.num_times == 1:
            raise EngineLostError("signal 9")
        yield Turn(
            cost, beam_steps=[BeamSteps(name, 0, half, steps[half:], -1.0, FinishReason.LENGTH)]
        )
        yield Turn(cost, beam_searches=[BeamSearchDone(name, [])])
        await asyncio.Event().wait()


async def test_other_tasks_run_while_many_steps_are_recorded(tmp_path: Path) -> None:
    """The engine dies in the middle, and then sends everything again."""
    engine = TellingEngine()
    run = await service(tmp_path, engine)
    prompt = tuple(1 + i % 300 for i in range(500))
    wanted = GenerationRequest(
        input=TokenInput(prompt),
        digest="d",
        decoding=DecodingRequest(Strategy.BEAM_SEARCH, num_beams=2, max_new_tokens=400),
    )
    most_between_turns = 0

    async def witness() -> None:
        nonlocal most_between_turns
        before = run.journal.position
        while True:
            await asyncio.sleep(0)
            most_between_turns = max(most_between_turns, run.journal.position - before)
            before = run.journal.position

    witnessing = asyncio.create_task(witness())
    generation_id = await run.start(wanted)
    finished = await run.finished(generation_id)
    witnessing.cancel()
    assert engine.num_times == 2
    assert list(finished.sequences[0].token_ids) == [40 + i % 50 for i in range(400)]
    entries = await run.journal.read(generation_id, limit=2_000)
    kinds = [entry.kind for entry in entries]
    assert kinds == [
        EntryKind.STARTED,
        *[EntryKind.PROMPT_STEP] * 500,
        *[EntryKind.STEP] * 400,
        EntryKind.FINISHED,
    ]
    assert most_between_turns <= 20
    await run.close()
