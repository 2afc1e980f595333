"""A served model leads to the run that made it, whose record lies beside it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lineage_records import SPAN_ID, TRACE_ID, RecordBuilder
from server_process import ServerProcess

from whence import Client, NotFoundError
from whence.v1.model_pb2 import Model


def command(server: ServerProcess, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "whence.cli", *arguments, "--target", server.target],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.fixture(scope="module")
def made_by_another_run(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Model]:
    """A model's directory with a record that does not tell of it; and the model as served."""
    directory = tmp_path_factory.mktemp("linked") / "model"
    shutil.copytree(tiny_model("gpt2"), directory)
    with RecordBuilder(directory) as builder:
        builder.attempt().steps(range(1, 4)).checkpoint(3)
    with ServerProcess(directory, directory.parent / "data") as server:
        with Client(server.target) as client:
            model = client.model()
            with pytest.raises(NotFoundError) as caught:
                client.training_runs.get()
            assert caught.value.reason == "TRAINING_RUN_NOT_FOUND"
            (run,) = client.training_runs.list()
            assert (run.training_run_id, run.served_models) == (builder.id, [])
            assert not client.generate("a", max_new_tokens=1).result().started.training_run.step
        server.terminate()
    assert f"none of the 1 checkpoints on record has its model digest {model.model_digest}" in (
        "".join(server.log)
    )
    return directory, model


def test_a_record_of_other_weights_is_no_link(made_by_another_run: tuple[Path, Model]) -> None:
    _, model = made_by_another_run
    assert (model.training_run_id, model.HasField("training_step")) == ("", False)


def test_a_model_names_the_run_that_made_it(
    made_by_another_run: tuple[Path, Model], tmp_path: Path
) -> None:
    model_directory, model = made_by_another_run
    with RecordBuilder(tmp_path / "runs" / "r", 2) as builder:
        builder.attempt().steps(range(1, 8))
        builder.checkpoint(7, ".", model_digest=model.model_digest).finish(7)
        runs = tmp_path / "runs"
        flags = ("--training-runs", str(runs), "--model-name", "tiny")
        with ServerProcess(model_directory, tmp_path / "data", *flags) as server:
            with Client(server.target) as client:
                linked = client.model()
                assert (linked.training_run_id, linked.training_step) == (builder.id, 7)
                run = client.training_runs.get()
                assert (run.summary.training_run_id, run.summary.served_models) == (
                    builder.id,
                    ["tiny"],
                )
                generation = client.generate("a", max_new_tokens=1).result()
                told = generation.started.training_run
            assert f"{builder.id}, step 7" in command(server, "model")
            assert f"{builder.id}, step 7" in command(server, "generations", "show", generation.id)
            (started, *_) = command(server, "generate", "a", "--json").splitlines()
            assert json.loads(started)["training_run"]["record_head"] == builder.head
            assert server.terminate() == 0
    assert (told.training_run_id, told.step) == (builder.id, 7)
    assert (told.trace_id, told.span_id) == (TRACE_ID, SPAN_ID)
    assert told.record_head == builder.head
