"""An engine that hangs is noticed and replaced, and what it was doing goes on."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import grpc
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc

REQUEST = g.GenerateRequest(
    prompt="The quick brown fox",
    decoding=g.Decoding(sample=g.Sample(seed=1), max_new_tokens=600, ignore_eos=True),
)


def token_ids(target: str, then: Callable[[], None] = lambda: None) -> list[int]:
    """A stream's tokens; something is done once some of them are there."""
    found: list[int] = []
    with grpc.insecure_channel(target) as channel:
        for response in generation_pb2_grpc.GenerationServiceStub(channel).Generate(REQUEST):
            before = len(found)
            found += [step.token_id for step in response.event.steps.steps]
            if before < 50 <= len(found):
                then()
    return found


def test_a_stopped_engine_is_replaced(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    """A generation that runs meanwhile has the tokens of an undisturbed run."""
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, "--engine-stall-timeout", "5") as server:
        undisturbed = token_ids(server.target)
        first = server.engine_pid

        def stop() -> None:
            os.kill(first, signal.SIGSTOP)

        assert token_ids(server.target, stop) == undisturbed
        assert server.engine_pid != first
        server.wait_line("hangs and is killed")
        assert server.terminate() == 0
    assert sum("hangs and is killed" in line for line in server.log) == 1
