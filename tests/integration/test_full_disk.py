"""A server whose disk takes nothing more: it says so, serves what it has, and comes back."""

import asyncio
import json
import resource
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rpc_errors import failure_of
from server_process import ServerProcess
from waiting import wait_until

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc

ENDLESS = g.GenerateRequest(
    prompt="The quick brown fox",
    decoding=g.Decoding(
        sample=g.Sample(seed=1), max_new_tokens=8_000, ignore_eos=True, num_return_sequences=2
    ),
)
PATIENCE = ("--journal-patience", "2")
"""So that streams end soon."""
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
    return list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=240))


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
        ServerProcess(
            tiny_model("gpt2-long"), tmp_path, "--durability", durability, *PATIENCE
        ) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        trace = trace_pb2_grpc.TraceServiceStub(channel)
        before = generate(channel, SHORT)[0].event.started.generation_id
        # Reading has everything committed before it.
        trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=before))
        endless = generation_pb2_grpc.GenerationServiceStub(channel).Generate(ENDLESS, timeout=240)
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
        ServerProcess(tiny_model("gpt2-long"), tmp_path, *PATIENCE) as server,
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


def count_entries(data_dir: Path) -> int:
    """Return the number of entries on disk."""
    database = sqlite3.connect(f"file:{data_dir / 'journal.db'}?mode=ro", uri=True)
    try:
        (number,) = database.execute("SELECT count(*) FROM entries").fetchone()
        return int(number)
    finally:
        database.close()


def ask_http(url: str, body: bytes | None = None) -> tuple[str, str | None]:
    """Return the answer's body, and the header that says that nothing is on record."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=240) as answer:
        return answer.read().decode(), answer.headers["whence-unrecorded"]


@pytest.mark.parametrize("durability", ["group", "strict"])
def test_requests_are_served_without_a_record_if_that_is_asked_for(
    tiny_model: Callable[..., Path], tmp_path: Path, durability: str
) -> None:
    flags = ("--record-failure", "open", "--durability", durability, *PATIENCE)
    fronts = ("--http-listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
    with (
        ServerProcess(tiny_model("gpt2-long"), tmp_path, *flags, *fronts) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        trace = trace_pb2_grpc.TraceServiceStub(channel)
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        recorded = generate(channel, SHORT)
        before = recorded[0].event.started
        assert before.unrecorded_reason == ""
        trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=before.generation_id))
        running = stub.Generate(ENDLESS, timeout=240)
        running_id = next(running).event.started.generation_id
        limit_files(server, (tmp_path / "journal.db-wal").stat().st_size)
        metrics = server.find_metrics()
        while "journal" not in json.loads(ask_http(f"{metrics}/healthz")[0]):
            time.sleep(0.02)
        num_on_disk = count_entries(tmp_path)

        served = generate(channel, SHORT)
        started, finished = served[0].event.started, served[-1].event.finished
        assert started.unrecorded_reason == "JOURNAL_UNWRITABLE"
        (expected,) = recorded[-1].event.finished.sequences
        assert finished.sequences[0].token_ids == expected.token_ids
        offsets = [(r.event.first_offset, r.event.last_offset) for r in served]
        assert [last + 1 for _, last in offsets[:-1]] == [first for first, _ in offsets[1:]]
        again = g.ResumeGenerationRequest(generation_id=started.generation_id, after_offset=1)
        assert list(stub.ResumeGeneration(again))[-1].event.finished == finished
        with pytest.raises(grpc.RpcError) as unknown:
            trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=started.generation_id))
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND

        asked = {"prompt": "The quick", "max_tokens": 3}
        url = f"{server.http_url}/v1/completions"
        assert ask_http(url, json.dumps(asked).encode())[1] == "JOURNAL_UNWRITABLE"
        _, streamed = ask_http(url, json.dumps({**asked, "stream": True}).encode())
        assert streamed == "JOURNAL_UNWRITABLE"
        health = json.loads(ask_http(f"{metrics}/healthz")[0])
        assert health["status"] == "SERVING"
        assert health["journal"] == {"writable": False, "reason": "JOURNAL_UNWRITABLE"}
        assert health["generations"]["unrecorded"] == 3
        assert "whence_generations_unrecorded_total 3.0" in ask_http(f"{metrics}/metrics")[0]
        told = "is served unrecorded"
        asyncio.run(wait_until(lambda: sum(told in line for line in tuple(server.log)) == 3))

        if durability == "group":
            # The one that was running goes on beyond what is on disk.
            while next(running).event.last_offset <= num_on_disk:
                pass
        limit_files(server, resource.RLIM_INFINITY)
        running.cancel()
        while "journal" in json.loads(ask_http(f"{metrics}/healthz")[0]):
            time.sleep(0.02)
        after = generate(channel, SHORT)[0].event.started
        assert after.unrecorded_reason == ""
        for generation_id in (running_id, after.generation_id):
            trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=generation_id))
        assert server.terminate() == 0
    assert verified(tmp_path) == (0, "")
