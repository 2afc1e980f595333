"""Two servers on one PostgreSQL database: one record, and nothing lost when one of them dies."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest
from server_process import ServerProcess

from whence import Client
from whence.v1 import generation_pb2 as g
from whence.v1 import generation_pb2_grpc, trace_pb2, trace_pb2_grpc

if TYPE_CHECKING:
    from postgres import PostgresServer

LONG = g.GenerateRequest(
    generation_id="11111111-2222-4333-8444-555555555555",
    prompt="The quick brown fox",
    decoding=g.Decoding(sample=g.Sample(seed=1), max_new_tokens=8_000, ignore_eos=True),
)


@pytest.fixture(scope="module")
def servers(
    tiny_model: Callable[..., Path],
    postgres: "PostgresServer",
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ServerProcess, ServerProcess, str]]:
    """Gives two servers and the address of their database."""
    folder = tmp_path_factory.mktemp("shared")
    url, model = postgres.make_journal_url(str(folder)), tiny_model("gpt2-long")
    # The variable keeps a password out of the list of processes.
    environment = {"WHENCE_JOURNAL": url}
    with (
        ServerProcess(model, folder / "a", "--journal-lease", "2", environment=environment) as a,
        ServerProcess(model, folder / "b", "--journal-lease", "2", environment=environment) as b,
    ):
        yield a, b, url


def verify(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whence_server", "verify", "--journal", url],
        capture_output=True,
        text=True,
        check=False,
    )


def test_generations_of_one_server_are_read_and_deleted_through_the_other(
    servers: tuple[ServerProcess, ServerProcess, str],
) -> None:
    a, b, url = servers
    with Client(a.target) as first:
        with first.generate("one", sample=True, seed=1, max_new_tokens=8) as generation:
            text, generation_id = "".join(t.text for t in generation), generation.id
        # The stream ends before the commit under `group`.
        wait = trace_pb2.GetGenerationRequest(generation_id=generation_id)
        with grpc.insecure_channel(a.target) as channel:
            trace_pb2_grpc.TraceServiceStub(channel).GetGeneration(wait)
        with grpc.insecure_channel(b.target) as channel:
            request = g.ResumeGenerationRequest(generation_id=generation_id)
            resumed = generation_pb2_grpc.GenerationServiceStub(channel).ResumeGeneration(request)
            steps = [step for answer in resumed for step in answer.event.steps.steps]
            assert "".join(step.text for step in steps) == text
            stub = trace_pb2_grpc.TraceServiceStub(channel)
            listed = stub.ListGenerations(trace_pb2.ListGenerationsRequest(page_size=10))
            assert generation_id in [row.generation_id for row in listed.generations]
            stub.DeleteGeneration(trace_pb2.DeleteGenerationRequest(generation_id=generation_id))
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetGeneration(wait)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    done = verify(url)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_killed_servers_generation_is_closed_and_its_stream_goes_on_at_the_other(
    servers: tuple[ServerProcess, ServerProcess, str],
) -> None:
    a, b, url = servers
    engine = psutil.Process(a.engine_pid)
    seen: list[int] = []
    enough = threading.Event()

    def read() -> None:
        with grpc.insecure_channel(a.target) as channel:
            try:
                for response in generation_pb2_grpc.GenerationServiceStub(channel).Generate(LONG):
                    seen.extend(step.token_id for step in response.event.steps.steps)
                    if len(seen) > 50:
                        enough.set()
            except grpc.RpcError:
                pass

    reading = threading.Thread(target=read)
    reading.start()
    assert enough.wait(60)
    with grpc.insecure_channel(b.target) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.CancelGeneration(g.CancelGenerationRequest(generation_id=LONG.generation_id))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        # The same request to the other server reads the running generation.
        stream = stub.Generate(LONG)
        followed: list[int] = []
        for response in stream:
            followed.extend(step.token_id for step in response.event.steps.steps)
            if len(followed) > 20 and a.process.poll() is None:
                a.kill()
            if response.event.HasField("finished"):
                finished = response.event.finished
    reading.join(60)
    engine.wait(60)
    assert finished.finish_reason == g.FINISH_REASON_INTERRUPTED
    # What was committed is there, and what both have seen is the same.
    common = min(len(seen), len(followed))
    assert seen[:common] == followed[:common]
    assert finished.num_generated_tokens == len(followed)
    done = verify(url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "took over log" in "".join(b.log)
    # The survivor still serves.
    with Client(b.target) as client, client.generate("two", max_new_tokens=4) as generation:
        assert len(list(generation)) == 4


def test_no_log_has_the_address_of_the_database(
    servers: tuple[ServerProcess, ServerProcess, str],
) -> None:
    *processes, url = servers
    for process in processes:
        assert url not in "".join(process.log)
