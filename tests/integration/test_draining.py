"""A server that shuts down, and the addresses that it may listen on."""

import re
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from long_generations import (
    endless,
    first_step,
    generate,
)
from rpc_errors import failure_of
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_draining_lets_running_generations_finish(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with ServerProcess(tiny_model("gpt2-long"), tmp_path) as server:
        with grpc.insecure_channel(server.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            request = endless()
            request.decoding.max_new_tokens = 300
            call = generate(channel, request)
            first_step(call)
            # The generation runs until both have been seen, however late that is.
            engine = psutil.Process(server.engine_pid)
            engine.suspend()
            try:
                server.process.terminate()
                assert next(watch).status == NOT_SERVING
                with pytest.raises(grpc.RpcError) as caught:
                    list(generate(channel, endless()))
            finally:
                engine.resume()
            failure = failure_of(caught.value)
            assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
            *_, last = call
            assert last.event.finished.finish_reason == g.FINISH_REASON_LENGTH
        assert server.wait() == 0


def test_draining_interrupts_after_the_grace(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with ServerProcess(tiny_model("gpt2-long"), tmp_path, "--drain-grace", "0.2") as server:
        with grpc.insecure_channel(server.target) as channel:
            call = generate(channel, endless())
            first_step(call)
            server.process.terminate()
            *_, last = call
            assert last.event.finished.finish_reason == g.FINISH_REASON_INTERRUPTED
        assert server.wait() == 0


def test_addresses_beyond_loopback_need_the_flag(tmp_path: Path) -> None:
    flags = ("--record-only", "--listen", "0.0.0.0:0")
    refused = ServerProcess(None, tmp_path, *flags)
    assert refused.wait() == 2
    assert "--insecure-listen-anywhere" in "".join(refused.log)
    with ServerProcess(None, tmp_path, *flags, "--insecure-listen-anywhere") as allowed:
        assert re.fullmatch(r"0\.0\.0\.0:[0-9]+", allowed.target)
