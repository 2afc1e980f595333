"""More connections than the process may have descriptors, and nobody honest is shut out."""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, model_pb2, model_pb2_grpc

LIMIT = 256
FEW_DESCRIPTORS = ("sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")
ACKNOWLEDGED = bytes.fromhex("000000040100000000")
# A frame of headers that promises 8,192 bytes, on stream 1, and gives one.
HALF_OF_THE_HEADERS = bytes.fromhex("002000010400000001") + b"\x83"
SILENT = {
    "nothing": b"",
    "half of a preface": PREFACE[:10],
    "a preface": PREFACE,
    "settings": PREFACE + SETTINGS,
    "half of the headers": PREFACE + SETTINGS + HALF_OF_THE_HEADERS,
    "TLS": bytes.fromhex("16030100c8010000c4") + bytes(40),
}


@pytest.fixture(scope="module")
def server(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory):
    with ServerProcess(
        tiny_model("gpt2-long"),
        tmp_path_factory.mktemp("crowded"),
        "--listen",
        "127.0.0.1:0",
        prefix=FEW_DESCRIPTORS,
    ) as process:
        yield process


def crowd(stack: ExitStack, target: str, greeting: bytes) -> None:
    """More connections than there are descriptors, each of which says so much and no more."""
    host, _, port = target.rpartition(":")
    for _ in range(LIMIT + 50):
        connection = stack.enter_context(socket.create_connection((host, int(port)), 10))
        with suppress(ConnectionError):  # where it has been turned away already
            connection.sendall(greeting)


def answers(target: str) -> bool:
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        request = model_pb2.ListModelsRequest()
        return bool(stub.ListModels(request, wait_for_ready=True, timeout=60).models)


@pytest.mark.parametrize("kind", SILENT)
def test_an_honest_client_gets_in(server: ServerProcess, kind: str) -> None:
    with ExitStack() as stack:
        crowd(stack, server.target, SILENT[kind])
        assert answers(server.target)


def test_an_engine_that_dies_in_a_crowd_comes_back(server: ServerProcess) -> None:
    request = g.GenerateRequest(
        prompt="The quick",
        decoding=g.Decoding(sample=g.Sample(seed=1), max_new_tokens=600, ignore_eos=True),
    )
    with ExitStack() as stack, grpc.insecure_channel(server.target) as channel:
        num_steps, finished = 0, None
        for response in generation_pb2_grpc.GenerationServiceStub(channel).Generate(request):
            before = num_steps
            num_steps += len(response.event.steps.steps)
            if before < 50 <= num_steps:
                crowd(stack, server.target, b"")
                os.kill(server.engine_pid, signal.SIGKILL)
            if response.event.HasField("finished"):
                finished = response.event.finished
        assert finished is not None
        assert finished.finish_reason == g.FINISH_REASON_LENGTH
        assert num_steps == 600
    assert answers(server.target)
    assert server.process.poll() is None
