"""A server whose model is loading, or cannot be loaded: callers wait, or are told why."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from rpc_errors import failure_of
from server_process import ServerProcess

import whence
from whence.v1 import generation_pb2 as g
from whence.v1 import model_pb2
from whence.v1.generation_pb2_grpc import GenerationServiceStub

START_S = 120.0
COMMAND = (sys.executable, "-m", "whence.cli", "model", "wait")
UNKNOWN = "00000000-0000-4000-8000-000000000000"


def wait_until_it_answers(client: whence.Client) -> model_pb2.Model:
    """Return the model as the server describes it in its first answer."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            (model,) = client.models()
        except whence.UnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        else:
            return model


def test_callers_wait_within_their_patience_while_the_model_loads(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    process = ServerProcess(tiny_model("gpt2"), tmp_path, "--model-name", "tiny")
    try:
        with (
            whence.Client(process.target, connect_timeout_s=START_S) as patient,
            whence.Client(process.target, connect_timeout_s=0) as hasty,
        ):
            assert wait_until_it_answers(hasty).state == model_pb2.MODEL_STATE_LOADING
            for ask in (lambda: hasty.generate("The").result(), hasty.vocabulary):
                with pytest.raises(whence.UnavailableError, match="whence model wait") as caught:
                    ask()
                assert (caught.value.reason, caught.value.retry_delay_s) == ("MODEL_LOADING", 1.0)
            with pytest.raises(whence.UnavailableError) as late:
                hasty.wait_ready(0.2)
            assert late.value.reason == "MODEL_LOADING"
            # These need no model.
            assert list(hasty.training_runs.list()) == []
            assert list(hasty.generations.list()) == []
            with pytest.raises(whence.NotFoundError):
                hasty.cancel(UNKNOWN)
            waiting = subprocess.Popen(
                [*COMMAND, "--json", "--target", process.target, "--timeout", str(START_S)],
                stdout=subprocess.PIPE,
                text=True,
            )
            with waiting:
                waited = patient.generate("The", max_new_tokens=3, ignore_eos=True).result()
                assert len(waited.sequences[0].token_ids) == 3
                assert hasty.wait_ready(START_S).state == model_pb2.MODEL_STATE_READY
                answer, _ = waiting.communicate(timeout=START_S)
            assert waiting.returncode == 0
            assert json.loads(answer)["state"] == "MODEL_STATE_READY"
            with pytest.raises(whence.NotFoundError):
                hasty.wait_ready(START_S, model="another")
    finally:
        process.kill()


async def test_callers_that_wait_are_told_why_the_model_cannot_be_loaded(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model("gpt2"), broken)
    (broken / "model.safetensors").write_bytes(b"no tensors")
    process = ServerProcess(broken, tmp_path / "data")
    try:
        async with whence.AsyncClient(process.target) as client:
            with pytest.raises(whence.FailedPreconditionError) as caught:
                await client.wait_ready(START_S)
            assert caught.value.reason == "MODEL_FAILED"
            assert "could not be loaded" in caught.value.message
            async with grpc.aio.insecure_channel(process.target) as channel:
                call = GenerationServiceStub(channel).Generate(g.GenerateRequest(prompt="The"))
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call.read()
            failure = failure_of(refused.value)
            assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
            assert failure.reason == "MODEL_FAILED"
        process.process.terminate()
        assert process.wait() == 2
    finally:
        if process.process.poll() is None:
            process.kill()
    assert any("safetensors" in line or "load" in line for line in process.log)


async def test_callers_are_told_why_a_load_failed_in_its_first_second(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    process = ServerProcess(tmp_path / "empty", tmp_path / "data")
    try:
        async with whence.AsyncClient(process.target) as client:
            with pytest.raises(whence.FailedPreconditionError, match="has no weights") as told:
                await client.wait_ready(START_S)
            assert told.value.reason == "MODEL_FAILED"
        assert process.wait() == 2, "nobody stopped it"
    finally:
        if process.process.poll() is None:
            process.kill()


def test_a_path_that_does_not_exist_ends_the_server_before_its_port_opens(tmp_path: Path) -> None:
    process = ServerProcess(tmp_path / "mistyped", tmp_path / "data")
    assert process.wait() == 2
    assert not (tmp_path / "data").joinpath("s").exists()
    (line,) = process.log
    assert "mistyped is not a directory" in line
