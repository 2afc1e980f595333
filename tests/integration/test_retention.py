"""A server that keeps for half a year and holds a matter, on a journal of an earlier run."""

import asyncio
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from aged_journal import fill, name
from rpc_errors import failure_of
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc
from whence_server.cli import main

NUM_OLD = 100
HELD, YOUNG = 900, 901
FLAGS = ("--retain", "180d", "--hold-label", "matter=*")
SHORT = g.GenerateRequest(prompt="The quick", decoding=g.Decoding(max_new_tokens=3))


def read_metric(server: ServerProcess, series: str) -> float:
    with urllib.request.urlopen(f"{server.find_metrics()}/metrics", timeout=60) as answer:
        page = answer.read().decode()
    found = re.search(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else -1.0


def await_deletions(server: ServerProcess) -> None:
    give_up = time.monotonic() + 60
    series = 'whence_retention_deleted_total{whence_retention_cause="age"}'
    while (found := read_metric(server, series)) != NUM_OLD:
        assert time.monotonic() < give_up, f"{found} generations were deleted, not {NUM_OLD}"
        time.sleep(0.05)


def test_retention_beside_requests_then_compaction_then_verification(
    tiny_model: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tuple((i, 300 - i, {}) for i in range(1, NUM_OLD + 1))
    held = (HELD, 500, {"matter": "2031-17"})
    asyncio.run(fill(tmp_path, held, *old, (YOUNG, 0, {}), num_steps=60, step_bytes=700))
    database = tmp_path / "journal.db"
    before = database.stat().st_size
    with (
        ServerProcess(
            tiny_model("gpt2"), tmp_path, *FLAGS, "--metrics-listen", "127.0.0.1:0"
        ) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        trace = trace_pb2_grpc.TraceServiceStub(channel)
        generate = generation_pb2_grpc.GenerationServiceStub(channel).Generate
        assert list(generate(SHORT, timeout=60))[-1].event.HasField("finished")
        await_deletions(server)

        for number in (HELD, YOUNG):
            trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=name(number)))
        with pytest.raises(grpc.RpcError) as caught:
            trace.GetGeneration(trace_pb2.GetGenerationRequest(generation_id=name(1)))
        assert failure_of(caught.value).reason == "GENERATION_DELETED"
        with pytest.raises(grpc.RpcError) as caught:
            trace.DeleteGeneration(trace_pb2.DeleteGenerationRequest(generation_id=name(HELD)))
        failure = failure_of(caught.value)
        assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
        assert failure.reason == "GENERATION_HELD"
        assert "--hold-label matter=*" in failure.message
        assert read_metric(server, "whence_retention_held") == 1

        assert main(["compact", "--data-dir", str(tmp_path)]) == 0
        assert database.stat().st_size < before / 5
        assert list(generate(SHORT, timeout=60))[-1].event.HasField("finished")
        assert main(["retention", "--dry-run", "--data-dir", str(tmp_path), *FLAGS]) == 0
        shown = capsys.readouterr().out
        assert "nothing would be deleted" in shown
        assert "held by --hold-label: 1 generation" in shown
        assert server.terminate() == 0
    assert main(["verify", "--data-dir", str(tmp_path)]) == 0
