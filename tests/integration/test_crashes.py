"""State after SIGKILL of either process: everything committed is there, and nothing is torn."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from server_process import ServerProcess

from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, step_pb2, trace_pb2, trace_pb2_grpc

ENDLESS = g.GenerateRequest(
    prompt="The quick brown fox",
    decoding=g.Decoding(
        sample=g.Sample(seed=1), max_new_tokens=8_000, ignore_eos=True, num_return_sequences=2
    ),
)


def read_some_steps(
    target: str,
    num_steps: int,
    then: Callable[[], None],
    request: g.GenerateRequest = ENDLESS,
) -> tuple[str, list[step_pb2.Step], g.GenerationFinished | None, grpc.StatusCode | None]:
    """Reads a stream, does something in its middle, and reads on to whatever end it has."""
    seen: list[step_pb2.Step] = []
    generation_id, finished, code = "", None, None
    with grpc.insecure_channel(target) as channel:
        try:
            for response in generation_pb2_grpc.GenerationServiceStub(channel).Generate(request):
                event = response.event
                if event.HasField("started"):
                    generation_id = event.started.generation_id
                before = len(seen)
                seen += event.steps.steps
                if before < num_steps <= len(seen):
                    then()
                if event.HasField("finished"):
                    finished = event.finished
        except grpc.RpcError as error:
            code = error.code()
    return generation_id, seen, finished, code


def recorded(channel: grpc.Channel, generation_id: str) -> list[step_pb2.Step]:
    stub = trace_pb2_grpc.TraceServiceStub(channel)
    steps, token = [], ""
    while True:
        page = stub.ListSteps(
            trace_pb2.ListStepsRequest(
                generation_id=generation_id, page_size=1_000, page_token=token
            )
        )
        steps += page.steps
        token = page.next_page_token
        if not token:
            return steps


def await_entries(data_dir: Path, num_entries: int) -> None:
    """Until so many are committed."""
    give_up = time.monotonic() + 60
    database = sqlite3.connect(f"file:{data_dir / 'journal.db'}?mode=ro", uri=True)
    try:
        while database.execute("SELECT count(*) FROM entries").fetchone()[0] < num_entries:
            assert time.monotonic() < give_up, f"{num_entries} entries were not committed"
            time.sleep(0.01)
    finally:
        database.close()


def verify(data_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whence_server", "verify", "--data-dir", str(data_dir)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("durability", ["group", "strict"])
def test_streamed_entries_survive_a_kill_of_the_front(
    tiny_model: Callable[..., Path], tmp_path: Path, durability: str
) -> None:
    model = tiny_model("gpt2-long")
    with ServerProcess(model, tmp_path, "--durability", durability) as first:
        engine = psutil.Process(first.engine_pid)

        def kill_once_on_disk() -> None:
            # With "group", what was streamed may not be on disk yet.
            await_entries(tmp_path, 10)
            first.kill()

        generation_id, seen, finished, code = read_some_steps(first.target, 100, kill_once_on_disk)
        assert finished is None
        assert code is grpc.StatusCode.UNAVAILABLE
        engine.wait(60)
    with ServerProcess(model, tmp_path, "--durability", durability) as second:
        with grpc.insecure_channel(second.target) as channel:
            stub = trace_pb2_grpc.TraceServiceStub(channel)
            response = stub.GetGeneration(
                trace_pb2.GetGenerationRequest(generation_id=generation_id)
            )
            assert response.finished.finish_reason == g.FINISH_REASON_INTERRUPTED
            steps = recorded(channel, generation_id)
            common = min(len(steps), len(seen))
            assert steps[:common] == seen[:common]
            if durability == "strict":
                assert len(steps) >= len(seen)
            for sequence in response.finished.sequences:
                mine = [s for s in steps if s.sequence_index == sequence.sequence_index]
                assert "".join(s.text for s in mine) == sequence.text
                assert [s.token_id for s in mine] == list(sequence.token_ids)
            resumed = list(
                generation_pb2_grpc.GenerationServiceStub(channel).ResumeGeneration(
                    g.ResumeGenerationRequest(generation_id=generation_id)
                )
            )
            assert resumed[-1].event.finished == response.finished
        assert second.terminate() == 0
    verified = verify(tmp_path)
    assert verified.returncode == 0, verified.stderr
    assert int(verified.stdout.split()[0]) > len(steps)
    database = sqlite3.connect(tmp_path / "journal.db")
    database.execute("UPDATE entries SET payload = x'00' WHERE position = 7")
    database.commit()
    database.close()
    tampered = verify(tmp_path)
    assert tampered.returncode == 1
    assert "entry 7" in tampered.stderr
    assert verify(tmp_path / "elsewhere").returncode == 2


def test_generation_continues_unchanged_after_the_engine_is_killed(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Readers see a pause, and then the tokens of an undisturbed run."""
    request = g.GenerateRequest()
    request.CopyFrom(ENDLESS)
    request.decoding.max_new_tokens = 1_200
    with ServerProcess(tiny_model("gpt2-long"), tmp_path) as server:
        engines = [server.engine_pid]

        def kill_engine() -> None:
            psutil.Process(engines[0]).kill()

        _, undisturbed, _, _ = read_some_steps(server.target, 100, lambda: None, request)
        killed_id, seen, finished, code = read_some_steps(server.target, 100, kill_engine, request)
        assert code is None
        assert finished is not None
        assert finished.finish_reason == g.FINISH_REASON_LENGTH
        assert server.engine_pid != engines[0]
        for sequence in finished.sequences:
            mine = [s for s in seen if s.sequence_index == sequence.sequence_index]
            assert [s.index for s in mine] == list(range(1_200))
            assert [s.token_id for s in mine] == list(sequence.token_ids)
            theirs = [s for s in undisturbed if s.sequence_index == sequence.sequence_index]
            for a, b in zip(mine, theirs, strict=True):
                if a.token_id != b.token_id:
                    assert b.draw.margin < 1e-4
                    break
        with grpc.insecure_channel(server.target) as channel:
            found = trace_pb2_grpc.TraceServiceStub(channel).GetGeneration(
                trace_pb2.GetGenerationRequest(generation_id=killed_id)
            )
        ended, resumed = found.occurrences
        assert ended.engine_ended.detail == "the engine process ended: signal 9"
        assert resumed.HasField("engine_resumed")
        assert 100 <= ended.num_steps == resumed.num_steps < 2_400
        assert server.terminate() == 0
    assert verify(tmp_path).returncode == 0


def test_an_engine_that_does_not_start_again(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model("gpt2-long"), model)
    with ServerProcess(model, tmp_path / "data") as server:

        def kill_for_good() -> None:
            (model / "model.safetensors").unlink()
            psutil.Process(server.engine_pid).kill()

        _, seen, finished, code = read_some_steps(server.target, 100, kill_for_good)
        assert code is None
        assert finished is not None
        assert finished.finish_reason == g.FINISH_REASON_INTERRUPTED
        assert finished.num_generated_tokens == len(seen)
        assert server.wait() == 1


def test_a_second_server_on_the_same_journal_is_refused(tmp_path: Path) -> None:
    with ServerProcess(None, tmp_path, "--record-only"):
        other = ServerProcess(None, tmp_path, "--record-only", "--listen", "127.0.0.1:0")
        assert other.wait() == 2
        assert str(tmp_path) in "".join(other.log)
