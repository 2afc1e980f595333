"""A served model leads to the run that made it, whose record lies beside it."""

import asyncio
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from faulty_collector import FaultyCollector
from lineage_records import SPAN_ID, TRACE_ID, RecordBuilder, run_id
from server_process import ServerProcess
from span_reading import mapping
from whence_command import run_whence_well

from whence import Client
from whence.v1.generation_pb2 import TrainingRunRef
from whence_server.domain.otlp import OtlpProtocol


def command(server: ServerProcess, *arguments: str) -> str:
    return run_whence_well(*arguments, "--target", server.target)


def model_digest(directory: Path) -> str:
    """OpenSSF model signing's digest, from its definition, over a directory with nothing else."""
    files = sorted(directory.iterdir(), key=lambda file: file.name)
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files]
    return hashlib.sha256(b"".join(digests)).hexdigest()


async def test_a_model_names_the_run_that_made_it_and_so_do_its_generations_and_spans(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model("gpt2"), model)
    async with FaultyCollector(OtlpProtocol.GRPC).running() as collector:
        with RecordBuilder(tmp_path / "runs" / "r", 2) as builder:
            builder.attempt().steps(range(1, 8))
            builder.checkpoint(7, ".", model_digest=model_digest(model)).finish(7)
        # Beside the model lies the record of another run, which does not tell of these weights.
        with RecordBuilder(model, 3) as other:
            other.attempt().steps([1]).checkpoint(1)
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_METRICS_EXPORTER": "none",
        }
        flags = ("--training-runs", str(tmp_path / "runs"), "--model-name", "tiny")
        with ServerProcess(model, tmp_path / "data", *flags, environment=environment) as server:
            told = await asyncio.to_thread(_told, server, builder)
            assert await asyncio.to_thread(server.terminate) == 0
        spans = {span.span_id: span for span in collector.spans if span.links}
    assert (told.training_run_id, told.step) == (builder.id, 7)
    assert (told.trace_id, told.span_id) == (TRACE_ID, SPAN_ID)
    assert told.record_head == builder.head
    assert {span.name for span in spans.values()} == {"text_completion tiny"}
    for span in spans.values():
        (link,) = span.links
        assert (link.trace_id.hex(), link.span_id.hex()) == (TRACE_ID, SPAN_ID)
        attributes = mapping(list(span.attributes))
        assert attributes["whence.training.run_id"] == builder.id
        assert attributes["whence.training.step.number"] == 7


def _told(server: ServerProcess, builder: RecordBuilder) -> TrainingRunRef:
    """Return what a generation's record has of the training run."""
    with Client(server.target) as client:
        linked = client.model()
        assert (linked.training_run_id, linked.training_step) == (builder.id, 7)
        listed = {
            run.training_run_id: list(run.served_models) for run in client.training_runs.list()
        }
        assert listed == {builder.id: ["tiny"], run_id(3): []}
        summary = client.training_runs.get().summary
        assert (summary.training_run_id, list(summary.served_models)) == (builder.id, ["tiny"])
        generation = client.generate("a", max_new_tokens=1).result()
    assert f"{builder.id}, step 7" in command(server, "model")
    assert f"{builder.id}, step 7" in command(server, "generations", "show", generation.id)
    (started, *_) = command(server, "generate", "a", "--json", "--max-new-tokens", "1").splitlines()
    assert json.loads(started)["training_run"]["record_head"] == builder.head
    assert generation.started is not None
    return generation.started.training_run
