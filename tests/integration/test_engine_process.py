"""The engine as a process: its start, its messages over a socket, and its end."""

import asyncio
import os
import pickle
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from engine_harness import Harness, engine_options, greedy, loaded_model

from whence_server.domain.decoding import Decoding, FinishReason, Strategy, TraceOptions
from whence_server.domain.engine import Admit, StopGeneration, StopSequence, Turn
from whence_server.domain.errors import ConfigurationError, EngineLostError
from whence_server.engines.transformers.link import EngineProcess

TinyModel = Callable[..., Path]


@pytest.fixture
async def engine(tiny_model: TinyModel) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(engine_options(tiny_model("gpt2-long"), max_cache_tokens=100_000))
    yield engine
    await engine.stop()


def admit(name: str, decoding: Decoding) -> Admit:
    return Admit(name, [5, 6, 7], decoding, TraceOptions())


async def has_pid(engine: EngineProcess) -> int:
    while engine.pid is None:  # noqa: ASYNC110 - there is no event for it
        await asyncio.sleep(0)
    return engine.pid


async def until_finished(turns: AsyncIterator[Turn], *names: str) -> list[Turn]:
    taken, waiting = [], set(names)
    async for turn in turns:
        taken.append(turn)
        waiting -= {step.generation_id for step in turn.steps if step.finish}
        waiting -= {failure.generation_id for failure in turn.failed}
        if not waiting:
            return taken
    raise AssertionError(f"no end of {waiting}")


async def test_an_engine_process_starts_generates_and_stops(
    engine: EngineProcess, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY")
    info = await engine.start()
    assert (info.name, info.max_context_length) == ("tiny", 8192)
    assert engine.pid is not None
    assert engine.pid != os.getpid()
    assert psutil.Process(engine.pid).environ()["OMP_WAIT_POLICY"] == "PASSIVE"
    engine.send(admit("greedy", greedy(20, ignore_eos=True)))
    engine.send(admit("drawn", Decoding(Strategy.SAMPLE, 20, seed=1, num_return_sequences=2)))
    turns = await until_finished(engine.read_turns(), "greedy", "drawn")
    harness = Harness(loaded_model(tiny_model("gpt2-long")))
    harness.admit("greedy", [5, 6, 7], greedy(20, ignore_eos=True))
    harness.run()
    steps = [step for turn in turns for step in turn.steps if step.generation_id == "greedy"]
    assert [step.decision.token_id for step in steps] == harness.ids("greedy")
    assert all(turn.cost.ready_ns > 0 for turn in turns)
    assert all(turn.cost.forward_ns > 0 and turn.cost.select_ns > 0 for turn in turns if turn.steps)
    await engine.stop()
    assert await engine.wait() == 0
    assert [turn async for turn in engine.read_turns()] == [], (
        "an end that was asked for is no loss"
    )


async def test_stops_take_effect_between_steps(engine: EngineProcess) -> None:
    await engine.start()
    engine.send(admit("endless", greedy(8000, ignore_eos=True)))
    two = Decoding(Strategy.SAMPLE, 8000, ignore_eos=True, seed=3, num_return_sequences=2)
    engine.send(admit("two", two))
    turns = engine.read_turns()
    seen = 0
    async for turn in turns:
        seen += len(turn.steps)
        if turn.cost.batch_size == 3:
            break
    engine.send(StopSequence("two", 0))
    engine.send(StopGeneration("endless"))
    async for turn in turns:
        if turn.cost.batch_size == 1:
            assert {(step.generation_id, step.sequence_index) for step in turn.steps} == {
                ("two", 1)
            }
            break
    engine.send(StopGeneration("two"))
    engine.send(admit("after", greedy(3, ignore_eos=True)))
    last = (await until_finished(turns, "after"))[-1].steps[-1]
    assert (last.generation_id, last.index, last.finish) == ("after", 2, FinishReason.LENGTH)


async def test_the_engine_waits_for_a_front_that_does_not_read(engine: EngineProcess) -> None:
    await engine.start()
    # Large records, so that the socket is soon full.
    trace = TraceOptions(num_candidates=128)
    engine.send(Admit("long", [5], greedy(1000, ignore_eos=True), trace))
    turns = engine.read_turns()
    first = await anext(turns)
    process = psutil.Process(engine.pid)

    async def rests() -> bool:
        before = process.cpu_times()
        await asyncio.sleep(0.3)
        after = process.cpu_times()
        return after.user + after.system - before.user - before.system < 0.02

    async with asyncio.timeout(60):
        while not await rests():
            pass
    listening_ns = time.monotonic_ns()
    taken = await until_finished(turns, "long")
    assert sum(len(turn.steps) for turn in [first, *taken]) == 1000
    # It rested before it was through: its last token is younger than our listening.
    assert taken[-1].cost.ready_ns > listening_ns


async def test_the_engines_death_is_reported(engine: EngineProcess) -> None:
    await engine.start()
    assert engine.pid is not None
    engine.send(admit("endless", greedy(8000, ignore_eos=True)))
    turns = engine.read_turns()
    await anext(turns)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineLostError, match="signal 9"):
        async for _ in turns:
            pass
    engine.send(admit("into the void", greedy(1)))
    await engine.stop()


async def test_a_model_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    engine = EngineProcess(engine_options(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="nowhere is not a directory"):
        await engine.start()
    await engine.stop()


async def test_death_during_loading_is_reported(engine: EngineProcess) -> None:
    starting = asyncio.create_task(engine.start())
    pid = await has_pid(engine)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ConfigurationError, match="signal 9"):
        await starting


async def test_the_engine_can_be_stopped_during_loading(engine: EngineProcess) -> None:
    starting = asyncio.create_task(engine.start())
    pid = await has_pid(engine)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await engine.stop()
    assert not psutil.pid_exists(pid)


FRONT = """
import asyncio, pickle, sys
from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.engines.transformers.link import EngineProcess
from whence_server.domain.engine import Admit

async def main():
    engine = EngineProcess(pickle.loads(bytes.fromhex(sys.argv[1])))
    await engine.start()
    decoding = Decoding(Strategy.GREEDY, 8000, ignore_eos=True)
    engine.send(Admit("endless", [5], decoding, TraceOptions()))
    async for turn in engine.read_turns():
        print(engine.pid, "torch" in sys.modules, flush=True)

asyncio.run(main())
"""


async def test_the_engine_does_not_outlive_a_killed_front(tiny_model: TinyModel) -> None:
    options = engine_options(tiny_model("gpt2-long"), max_cache_tokens=100_000)
    front = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FRONT, pickle.dumps(options).hex(), stdout=asyncio.subprocess.PIPE
    )
    assert front.stdout is not None
    pid, has_torch = (await front.stdout.readline()).split()
    assert has_torch == b"False"
    engine = psutil.Process(int(pid))
    assert engine.is_running()
    front.kill()
    await front.wait()
    gone, _ = await asyncio.to_thread(psutil.wait_procs, [engine], timeout=60)
    assert gone
    front._transport.close()  # type: ignore[attr-defined]
