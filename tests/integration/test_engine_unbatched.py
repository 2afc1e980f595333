"""A model that cannot be batched, served by an engine process like any other."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from engine_harness import engine_options, greedy, loaded_model, reference_greedy
from server_process import ServerProcess

from whence.v1 import generation_pb2, generation_pb2_grpc, model_pb2, model_pb2_grpc
from whence_server.domain.decoding import Decoding, Strategy, TraceOptions
from whence_server.domain.engine import Admit, Replay, StepMade
from whence_server.engines.transformers.link import EngineProcess

TinyModel = Callable[..., Path]

PROMPTS = {name: list(range(5 + i, 45 + i)) for i, name in enumerate(("one", "two", "three"))}
"""Prompts longer than a prefill chunk."""


@pytest.fixture
async def engine(tiny_model: TinyModel) -> AsyncIterator[EngineProcess]:
    engine = EngineProcess(engine_options(tiny_model("mamba"), prefill_chunk_tokens=16))
    yield engine
    await engine.stop()


async def run(engine: EngineProcess, *admits: Admit) -> dict[str, list[StepMade]]:
    """Run generations to their end; return the steps of each."""
    steps: dict[str, list[StepMade]] = {admit.generation_id: [] for admit in admits}
    for admit in admits:
        engine.send(admit)
    async for turn in engine.read_turns():
        assert not turn.failed
        for step in turn.steps:
            steps[step.generation_id].append(step)
        if all(made and made[-1].finish for made in steps.values()):
            return steps
    raise AssertionError("the engine ended")


def ids(steps: list[StepMade]) -> list[int]:
    return [step.decision.token_id for step in steps]


async def test_unbatched_sequences_are_independent_and_can_be_continued(
    engine: EngineProcess, tiny_model: TinyModel
) -> None:
    info = await engine.start()
    assert not info.batched
    decoding, trace = greedy(20, ignore_eos=True), TraceOptions()
    admits = [Admit(name, prompt, decoding, trace) for name, prompt in PROMPTS.items()]
    drawn = Decoding(Strategy.SAMPLE, 20, temperature=0.9, seed=7, ignore_eos=True)
    steps = await run(engine, *admits, Admit("drawn", PROMPTS["one"], drawn, trace))
    model = loaded_model(tiny_model("mamba")).model
    for name, prompt in PROMPTS.items():
        expected = reference_greedy(model, prompt, max_new_tokens=20, eos_token_id=None)
        assert ids(steps[name]) == expected
    # The prompt and what was recorded are read in one pass, and lead to the same state.
    before = ids(steps["drawn"])[:8]
    on = Admit("on", PROMPTS["one"], drawn, trace, replays=[Replay(0, before)])
    rest = (await run(engine, on))["on"]
    assert before + ids(rest) == ids(steps["drawn"])
    assert [step.index for step in rest] == list(range(8, 20))


def test_the_server_reports_an_unbatched_model_and_streams_it(
    tiny_model: TinyModel, tmp_path: Path
) -> None:
    with ServerProcess(tiny_model("mamba"), tmp_path) as process:
        with grpc.insecure_channel(process.target) as channel:
            models = model_pb2_grpc.ModelServiceStub(channel)
            assert not models.GetModel(model_pb2.GetModelRequest()).model.batched
            request = generation_pb2.GenerateRequest(
                tokens=generation_pb2.TokenInput(token_ids=PROMPTS["one"]),
                decoding=generation_pb2.Decoding(
                    greedy=generation_pb2.Greedy(), max_new_tokens=20, ignore_eos=True
                ),
            )
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            finished = list(stub.Generate(request))[-1].event.finished
    model = loaded_model(tiny_model("mamba")).model
    expected = reference_greedy(model, PROMPTS["one"], max_new_tokens=20, eos_token_id=None)
    assert list(finished.sequences[0].token_ids) == expected
