"""Texts of tokens on the spans of a backlog, whose model another one has replaced."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from server_process import ServerProcess
from span_reading import attributes
from tiny_models import byte_level_tokenizer

from whence.summary import TokenNames, make_text_names, summarise_step
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, step_pb2
from whence.vocabulary import Vocabulary
from whence_server.demo.receiver import Receiver
from whence_server.journal.vocabularies import FOLDER, Vocabularies

FLAGS = ("--step-span-names", "token", "--unlikely-below", "1")
# The value from before there were four: it means SPAN_ONLY.
ENVIRONMENT = {"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT": "true"}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    yield made
    await made.close()


async def generate(target: str) -> tuple[g.GenerationStarted, list[step_pb2.Step]]:
    decoding = g.Decoding(sample=g.Sample(seed=1), max_new_tokens=12, ignore_eos=True)
    started, steps = g.GenerationStarted(), []
    async with grpc.aio.insecure_channel(target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        async for response in stub.Generate(g.GenerateRequest(prompt="The fox", decoding=decoding)):
            if response.event.HasField("started"):
                started = response.event.started
            steps += response.event.steps.steps
    return started, steps


def spell(names: TokenNames, token_id: int) -> str:
    """Return a token's text in quotes; its id alone for one beyond the tokenizer's vocabulary."""
    return names(token_id).removeprefix("#")


async def test_a_backlog_has_the_texts_of_the_model_that_made_it(
    tiny_model: Callable[..., Path], tmp_path: Path, receiver: Receiver
) -> None:
    models = [tiny_model("gpt2"), tmp_path / "other-tokenizer"]
    shutil.copytree(models[0], models[1])
    byte_level_tokenizer(300).save_pretrained(models[1])
    data_dir, flags = tmp_path / "data", ("--otlp-endpoint", receiver.endpoint, *FLAGS)
    made = []
    for model in models:
        with ServerProcess(model, data_dir, *flags, environment=ENVIRONMENT) as server:
            made.append(await generate(server.target))
            if model is models[1]:
                await receiver.start()
                async with asyncio.timeout(60):
                    while sum(s.kind == Span.SPAN_KIND_SERVER for s in receiver.spans) < 2:
                        await receiver.wait_for(receiver.num_spans + 1)
            # Without a collector, the first one cannot send its spans before it ends.
            assert await asyncio.to_thread(server.terminate) == 0
            (warning,) = [line for line in server.log if "is 'true', an old value" in line]
            assert "NO_CONTENT, SPAN_ONLY, EVENT_ONLY, SPAN_AND_EVENT" in warning
    digests = [started.tokenizer_digest for started, _ in made]
    assert len(set(digests)) == 2
    assert {path.name for path in (data_dir / FOLDER).iterdir()} == set(digests)
    for started, steps in made:
        kept = await Vocabularies(data_dir).find(started.tokenizer_digest, 2**62)
        assert kept is not None
        names = make_text_names(Vocabulary(tuple(kept.tokens)).text_of)
        told = {
            (found["whence.step.index"], span.name, found["whence.step.summary"])
            for span in receiver.spans
            if span.name.startswith("decode_step")
            and (found := attributes(span))["whence.generation.id"] == started.generation_id
        }
        assert told == {
            (s.index, f"decode_step {spell(names, s.token_id)}", summarise_step(s, names, "sample"))
            for s in steps
        }
        assert any('"' in name for _, name, _ in told)
    assert any("spans carry the text" in line for line in server.log)
