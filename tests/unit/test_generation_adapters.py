"""Adapters that requests name: known ones are recorded and sent to the engine, others refused."""

import asyncio
import dataclasses
from pathlib import Path

import dying_engine
import pytest
from dying_engine import MODEL, DyingEngine, request, service

from whence.v1 import generation_pb2 as g
from whence_server.domain.engine import Admit, StopGeneration, StopSequence
from whence_server.domain.entries import EntryKind
from whence_server.domain.errors import InvalidRequestError
from whence_server.domain.model import AdapterInfo, InternalsInfo, NamedAdapter, TrainingRunRef
from whence_server.generation.adapters import adapt_model, find_adapter

RUN = TrainingRunRef("run-1", "a" * 32, "b" * 16, 40, "c" * 64)
TONE = NamedAdapter(
    name="tone",
    identity=AdapterInfo("LORA", "1" * 64, "the/base", "0" * 64),
    weights_digest="2" * 64,
    files=(),
    internals=InternalsInfo("method", {"layers": "its head has layers of its own"}),
    training_run=RUN,
)
OTHER = dataclasses.replace(TONE, name="other", training_run=None)
ADAPTED = dataclasses.replace(MODEL, adapters=(OTHER, TONE))


def refusal(name: str, adapters: tuple[NamedAdapter, ...]) -> str:
    with pytest.raises(InvalidRequestError) as caught:
        find_adapter(dataclasses.replace(MODEL, adapters=adapters), name)
    [violation] = caught.value.violations
    assert violation.field == "adapter"
    return violation.description


def test_an_unknown_adapter_is_refused_with_the_names_of_the_known_ones() -> None:
    assert refusal("tune", ADAPTED.adapters) == (
        "is 'tune'; the adapters of this server are: other, tone"
    )
    assert refusal("tone", ()) == (
        "is 'tone', but this server has no adapters; start it with --adapter NAME=DIR"
    )
    many = tuple(dataclasses.replace(TONE, name=f"a{i}") for i in range(30))
    message = refusal("x" * 10_000, many)
    assert message.endswith("a18, a19, ...")
    assert len(message) < 400


def test_internals_and_training_run_are_those_of_the_adapter() -> None:
    adapted = adapt_model(ADAPTED, "tone")
    assert adapted == dataclasses.replace(ADAPTED, internals=TONE.internals, training_run=RUN)
    assert adapt_model(ADAPTED, "other").training_run is None
    assert adapt_model(ADAPTED, "") is ADAPTED


def test_kernels_on_record_are_those_of_the_model_with_the_adapter() -> None:
    environment = dataclasses.replace(MODEL.environment, step_kernels="packed")
    packed = dataclasses.replace(ADAPTED, environment=environment)
    assert adapt_model(packed, "").environment.step_kernels == "packed"
    # The modules run where the step that gives internals could not be captured.
    assert adapt_model(packed, "", has_internals=True).environment.step_kernels == ""
    captured = dataclasses.replace(packed.internals, step_kernels="packed")
    both = dataclasses.replace(packed, internals=captured)
    assert adapt_model(both, "", has_internals=True).environment.step_kernels == "packed"
    assert adapt_model(packed, "tone").environment == MODEL.environment


class ListeningEngine(DyingEngine):
    """A fake engine that keeps the admissions it was sent."""

    def __init__(self, deaths: list[int]) -> None:
        super().__init__(deaths)
        self.admits: list[Admit] = []

    def send(self, message: Admit | StopSequence | StopGeneration) -> None:
        if isinstance(message, Admit):
            self.admits.append(message)
        super().send(message)


async def test_the_adapter_is_on_record_and_sent_again_after_an_engines_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dying_engine, "MODEL", ADAPTED)
    engine = ListeningEngine(deaths=[6])
    run = await service(tmp_path, engine)
    named = dataclasses.replace(request(1), adapter="tone")
    ids = [await run.start(each) for each in (named, request(2))]
    await asyncio.gather(*map(run.finished, ids))
    assert engine.num_restarts == 1
    again = [admit for admit in engine.admits if admit.replays]
    for admits in (engine.admits, again):
        found = {(admit.generation_id, admit.adapter) for admit in admits}
        assert found == {(ids[0], "tone"), (ids[1], "")}
    recorded = []
    for generation_id in ids:
        [entry] = await run.journal.read(generation_id, limit=1, kinds=(EntryKind.STARTED,))
        recorded.append(g.GenerationStarted.FromString(entry.payload))
    with_adapter, without = recorded
    assert with_adapter.adapter == g.AppliedAdapter(
        name="tone",
        peft_type="LORA",
        digest="1" * 64,
        base="the/base",
        base_model_digest="0" * 64,
        weights_digest="2" * 64,
    )
    assert with_adapter.training_run.training_run_id == "run-1"
    assert not without.HasField("adapter")
    assert not without.HasField("training_run")
    unknown = dataclasses.replace(request(3), adapter="tune")
    with pytest.raises(InvalidRequestError, match="other, tone"):
        await run.start(unknown)
    await run.close()
