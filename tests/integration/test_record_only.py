"""A server without a model, which only puts generations of other processes on record."""

from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence import Client
from whence.errors import FailedPreconditionError
from whence_hooks.transformers import record_generate


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(None, tmp_path_factory.mktemp("data"), "--record-only") as process:
        yield process
        assert process.terminate() == 0


def generate(client: Client) -> None:
    with client.generate("Hi", max_new_tokens=1) as generation:
        generation.result()


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target) as connected:
        yield connected


def test_it_serves_no_model_and_is_serving(server: ServerProcess, client: Client) -> None:
    assert list(client.models()) == []
    for call in (client.model, client.vocabulary, lambda: generate(client)):
        with pytest.raises(FailedPreconditionError, match="--record-only") as caught:
            call()
        assert caught.value.reason == "NO_MODEL"
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_it_records_what_another_process_generates(
    server: ServerProcess, client: Client, tiny_model: Callable[..., Path]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model("gpt2"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("gpt2"))
    with record_generate(model, tokenizer, server.target) as recording:
        ids = model.generate(torch.tensor([[1, 2]]), do_sample=False, max_new_tokens=3)
        assert recording.flush(60)
    (row,) = client.generations.list()
    tokens = list(client.generations.steps(row.generation_id))
    assert [token.token_id for token in tokens] == ids[0, 2:].tolist()
    assert tokens[0].token_text
