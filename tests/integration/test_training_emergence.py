"""TraceEmergence, with a program of the test's in the place of the one that needs torch."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from emergence_programs import ANSWERS, NEVER_ENDS, REFUSES, WAITS_FOR_END
from lineage_records import RecordBuilder
from training_server import TrainingServer, training_server

from whence import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    InternalError,
    InvalidRequestError,
    ResourceExhaustedError,
    UnavailableError,
)
from whence.v1 import training_pb2 as pb
from whence.v1.training_pb2_grpc import TrainingServiceStub
from whence_server.lineage.emergence import EmergenceRequest, EmergenceTracer


@asynccontextmanager
async def serving(
    tmp_path: Path, program: str
) -> AsyncIterator[tuple[TrainingServer, AsyncClient, str]]:
    with RecordBuilder(tmp_path / "run") as builder:
        command = (sys.executable, "-c", program)
        async with training_server(tmp_path, emergence=command) as server:
            async with AsyncClient(server.target, resume_timeout_s=0.0) as client:
                yield server, client, builder.id


def children() -> list[psutil.Process]:
    """Return the ids of the tracing processes."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if any("EmergenceStarted" in part for part in child.cmdline()):
                found.append(child)
    return found


async def gone(processes: list[psutil.Process]) -> None:
    """Wait for the end of a process without reaping it, which is the server's task."""

    def wait() -> None:
        deadline = time.monotonic() + 60
        while any(process.is_running() for process in processes):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    await asyncio.to_thread(wait)


async def start_when_free(
    client: AsyncClient, run: str
) -> AsyncIterator[pb.TraceEmergenceResponse]:
    """Start a trace once the server knows that the process of the one before has ended."""
    deadline = time.monotonic() + 60
    while True:
        tracing = client.training_runs.trace_emergence(run, prompt="", continuation="y")
        try:
            assert (await anext(tracing)).HasField("started")
        except ResourceExhaustedError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return tracing


async def test_answers_come_as_they_are_computed(tmp_path: Path) -> None:
    async with serving(tmp_path, ANSWERS) as (_, client, run):
        for prompt in ("the cat", ""):
            answers = [
                answer
                async for answer in client.training_runs.trace_emergence(
                    run, prompt=prompt, continuation=" sat\n", omit_groups=True
                )
            ]
            kinds = [answer.WhichOneof("result") for answer in answers]
            assert kinds == ["started", "point", "interval", "point", "interval", "point"]
            record = str(tmp_path / "run" / "lineage.binpb")
            assert answers[0].started.continuation_texts == [record, prompt, " sat\n", "True"]
            assert answers[-1].point.logprob == -10.0


async def test_the_synchronous_client_traces_emergence(tmp_path: Path) -> None:
    async with serving(tmp_path, ANSWERS) as (server, _, run):

        def read() -> list[str | None]:
            with Client(server.target) as client:
                answers = client.training_runs.trace_emergence(run, prompt="", continuation="x")
                return [answer.WhichOneof("result") for answer in answers]

        assert len(await asyncio.to_thread(read)) == 6


@pytest.mark.parametrize("program", [WAITS_FOR_END, NEVER_ENDS])
async def test_one_at_a_time_and_the_process_ends_with_the_call(
    tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whence_server.lineage.emergence._GRACE_S", 0.2)
    async with serving(tmp_path, program) as (_, client, run):
        first = client.training_runs.trace_emergence(run, prompt="", continuation="x")
        await anext(first)
        processes = children()
        assert len(processes) == 1
        with pytest.raises(ResourceExhaustedError) as busy:
            await anext(client.training_runs.trace_emergence(run, prompt="", continuation="y"))
        assert (busy.value.reason, busy.value.retry_delay_s) == ("EMERGENCE_BUSY", 5.0)
        assert children() == processes
        await first.aclose()
        await gone(processes)
        # And the next one may.
        await (await start_when_free(client, run)).aclose()


async def test_cancelling_twice_leaves_no_process(tmp_path: Path) -> None:
    """Cancellation by both a client that leaves and a server that closes."""
    tracer = EmergenceTracer((sys.executable, "-c", NEVER_ENDS))
    answered = asyncio.Event()

    async def read() -> None:
        request = EmergenceRequest(tmp_path / "lineage.binpb", "", "x", omit_groups=False)
        async with aclosing(tracer.trace(request)) as messages:
            async for _ in messages:
                answered.set()

    reading = asyncio.create_task(read())
    await answered.wait()
    (process,) = children()
    for _ in range(2):
        reading.cancel()
        # It has got as far as it can before anything else happens.
        for _ in range(20):
            await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not psutil.pid_exists(process.pid)
    await tracer.close()


async def test_quiet_computation_keeps_its_stream_open(tmp_path: Path) -> None:
    with RecordBuilder(tmp_path / "run") as builder:
        command = (sys.executable, "-c", WAITS_FOR_END)
        serving = training_server(tmp_path, emergence=command, progress_interval_s=0.1)
        async with serving as server, grpc.aio.insecure_channel(server.target) as channel:
            call = TrainingServiceStub(channel).TraceEmergence(
                pb.TraceEmergenceRequest(training_run_id=builder.id, continuation="x")
            )
            while (first := await call.read()) == pb.TraceEmergenceResponse():
                pass
            assert first.HasField("started")
            assert [await call.read() for _ in range(2)] == [pb.TraceEmergenceResponse()] * 2
            async with AsyncClient(server.target) as client:
                call.cancel()
                tracing = await start_when_free(client, builder.id)
                quiet = asyncio.ensure_future(anext(tracing))
                await asyncio.wait({quiet}, timeout=0.3)
                assert not quiet.done(), "messages without a result are hidden"
                quiet.cancel()
                await asyncio.gather(quiet, return_exceptions=True)


async def test_the_process_ends_when_the_server_closes(tmp_path: Path) -> None:
    async with serving(tmp_path, WAITS_FOR_END) as (server, client, run):
        tracing = client.training_runs.trace_emergence(run, prompt="", continuation="x")
        await anext(tracing)
        processes = children()
        server.closing.set()
        with pytest.raises(UnavailableError):
            await anext(tracing)
        await gone(processes)


async def test_a_refusal_keeps_its_reason(tmp_path: Path) -> None:
    refusal = '{"reason": "CHECKPOINTS_MISSING", "message": "none of the 3 is there"}'
    program = REFUSES.format(refusal=refusal, status=2)
    async with serving(tmp_path, program) as (_, client, run):
        with pytest.raises(FailedPreconditionError, match="none of the 3 is there") as caught:
            await anext(client.training_runs.trace_emergence(run, prompt="", continuation="x"))
    assert caught.value.reason == "CHECKPOINTS_MISSING"


async def test_a_refusal_of_a_text_names_its_field(tmp_path: Path) -> None:
    refusal = '{"reason": "TOO_LONG", "message": "has 9 tokens", "field": "continuation"}'
    program = REFUSES.format(refusal=refusal, status=2)
    async with serving(tmp_path, program) as (_, client, run):
        with pytest.raises(InvalidRequestError) as caught:
            await anext(client.training_runs.trace_emergence(run, prompt="", continuation="x"))
    assert caught.value.violations == (("continuation", "has 9 tokens"),)


@pytest.mark.parametrize(
    "program",
    [
        REFUSES.format(refusal="no object", status=2),
        REFUSES.format(refusal="{}", status=2),
        REFUSES.format(refusal="[1]", status=2),
        REFUSES.format(refusal="Traceback: secret", status=1),
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        'print("no message of ours, and long enough to be one", flush=True)',
        "import sys; sys.stdout.write(chr(9) + 'ab')",
    ],
)
async def test_unexpected_exit_status_is_an_internal_error(
    tmp_path: Path, program: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, program) as (_, client, run):
        with pytest.raises(InternalError, match="an error inside the server") as caught:
            await anext(client.training_runs.trace_emergence(run, prompt="", continuation="x"))
        assert "secret" not in str(caught.value)
        assert "TraceEmergence failed" in caplog.text
