"""A server whose disk takes nothing more: it says so, serves what it has, and comes back."""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rpc_errors import failure_of
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc

ENDLESS = g.GenerateRequest(
    prompt="The quick brown fox",
    decoding=g.Decoding(
        sample=g.Sample(seed=1), max_new_tokens=8_000, ignore_eos=True, num_return_sequences=2
    ),
)
SHORT = g.GenerateRequest(prompt="The quick", decoding=g.Decoding(max_new_tokens=3))
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


def limit_files(server: ServerProcess, num_bytes: int) -> None:
    """No file of the front may grow beyond so many bytes: writing fails as on a full disk."""
    _, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (num_bytes, hard))


def await_health(channel: grpc.Channel, status: int) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    give_up = time.monotonic() + 60
    while stub.Check(health_pb2.HealthCheckRequest()).status != status:
        assert time.monotonic() < give_up, f"health did not become {status}"
        time.sleep(0.02)


def generate(channel: grpc.Channel, request: g.GenerateRequest) -> list[g.GenerateResponse]:
    return list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=60))


def verified(data_dir: Path) -> tuple[int, str]:
    command = [sys.executable, "-m", "whence_server", "verify", "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("durability", ["group", "strict"])
def test_a_full_disk_is_told_and_passes(
    tiny_model: Callable[..., Path], tmp_path: Path, durability: str
) -> None:
    log = tmp_path / "journal.db-wal"
    with (
        ServerProcess(tiny_model("gpt2-long"), tmp_path, "--durability", durability) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        trace = trace_pb2_grpc.TraceServiceStub(channel)
        before = generate(channel, SHORT)[0].event.started.generation_id
        # Reading has everything committed before it.
        trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=before))
        endless = generation_pb2_grpc.GenerationServiceStub(channel).Generate(ENDLESS, timeout=60)
        running = next(endless).event.started.generation_id
        limit_files(server, log.stat().st_size)
        await_health(channel, NOT_SERVING)
        with pytest.raises(grpc.RpcError) as refused:
            generate(channel, SHORT)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert failure_of(refused.value).reason == "JOURNAL_UNWRITABLE"
        seen = []
        with pytest.raises(grpc.RpcError) as told:
            seen.extend(step for response in endless for step in response.event.steps.steps)
        assert told.value.code() is grpc.StatusCode.UNAVAILABLE
        assert failure_of(told.value).reason == "JOURNAL_UNWRITABLE"
        got = trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=before))
        assert got.finished.num_generated_tokens == 3
        assert len(trace.ListGenerations(trace_pb2.ListGenerationsRequest()).generations) >= 1

        limit_files(server, resource.RLIM_INFINITY)
        await_health(channel, SERVING)
        after = generate(channel, SHORT)
        assert after[-1].event.finished.num_generated_tokens == 3
        # Its reader was told and left: it is cancelled, and what was streamed is on record.
        finished = trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=running))
        assert finished.finished.finish_reason == g.FINISH_REASON_CANCELLED
        assert finished.finished.num_generated_tokens >= len(seen)
        assert server.terminate() == 0
    assert verified(tmp_path) == (0, "")


def test_a_disk_that_stays_full_ends_in_an_exit_status(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    with (
        ServerProcess(tiny_model("gpt2-long"), tmp_path) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        before = generate(channel, SHORT)[0].event.started.generation_id
        # Reading has everything committed before it.
        trace_pb2_grpc.TraceServiceStub(channel).GetGeneration(
            trace_pb2.GetGenerationRequest(generation_id=before)
        )
        limit_files(server, (tmp_path / "journal.db-wal").stat().st_size)
        # Idle until now: the first failure is that of this one's own entries.
        with pytest.raises(grpc.RpcError) as caught:
            generate(channel, ENDLESS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await_health(channel, NOT_SERVING)
        assert server.terminate() == 1
        assert "Traceback" not in "".join(server.log[-3:])
    assert verified(tmp_path) == (0, "")
