"""ExplainService of a running server, its command, and what it leaves on record."""

import asyncio
import fcntl
import json
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from server_process import ServerProcess
from waiting import wait_until

from whence import (
    AsyncClient,
    Client,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    UnavailableError,
)
from whence.cli.main import main
from whence.v1 import explain_pb2 as pb
from whence.v1 import explanation_pb2

PROMPT = "The quick brown fox jumps over the lazy dog"


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target) as client:
        yield client


@pytest.fixture(scope="module")
def generation_id(client: Client) -> str:
    return run(client)


def run(client: Client, **options: Any) -> str:
    settings = {"max_new_tokens": 6, "greedy": True, "ignore_eos": True, **options}
    with client.generate(PROMPT, **settings) as generation:
        for _ in generation:
            pass
    return generation.id


def explain(client: Client, generation_id: str | None, **options: Any) -> list[pb.ExplainResponse]:
    with client.explain(generation_id, **options) as events:
        return list(events)


def find_analysis(server: ServerProcess) -> psutil.Process | None:
    """Return the server's analysis process; None if none runs."""
    for child in psutil.Process(server.process.pid).children(recursive=True):
        try:
            if "whence_server.analysis.process" in child.cmdline():
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def test_a_step_is_explained_and_the_explanation_is_on_record(
    client: Client, generation_id: str
) -> None:
    found = explain(client, generation_id, step=2, segments="words")[-1].result
    assert found.method
    assert len(found.scores) == len(found.segments) >= 9
    assert "".join(it.text for it in found.segments).startswith(PROMPT)
    record = client.generations.record(generation_id)
    token = record.steps[2]
    assert list(found.span.token_ids) == [token.token_id]
    assert found.span.value == pytest.approx(token.logprob, abs=1e-3)
    assert found.weights_digest == record.started.environment.weights_digest
    assert found.unrecorded_reason == ""
    recorded = client.generations.get(generation_id).occurrences[-1].explained
    assert recorded.explanation == found
    assert recorded.caller.method == "whence.v1.ExplainService/Explain"


def test_a_span_and_a_contrast_are_explained_as_one_unit(
    client: Client, generation_id: str
) -> None:
    found = explain(client, generation_id, steps=range(1, 4), against=" cat and dog")[-1].result
    assert (found.span.begin_step, found.span.end_step) == (1, 4)
    assert found.span.against_text == " cat and dog"


def test_a_text_is_explained_that_no_generation_made(client: Client) -> None:
    found = explain(client, None, prompt=PROMPT, text=" twice", segments="words")[-1].result
    assert found.span.text == " twice"
    assert len(found.segments) == 9


def test_the_asynchronous_client_explains_too(server: ServerProcess) -> None:
    async def ask() -> explanation_pb2.Explanation:
        async with AsyncClient(server.target) as client:
            async with client.explain(prompt=PROMPT, text=" twice") as events:
                found = [event async for event in events]
        return found[-1].result

    assert asyncio.run(ask()).span.text == " twice"


def test_what_cannot_be_explained_is_refused_in_words(client: Client, generation_id: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"begin_step: is 6; .* 6 steps .* at most 5"):
        explain(client, generation_id, step=6)
    with pytest.raises(InvalidRequestError, match="end_step: is 9"):
        explain(client, generation_id, steps=range(3, 9))
    with pytest.raises(InvalidRequestError, match="sequence_index: is 1"):
        explain(client, generation_id, step=0, sequence=1)
    with pytest.raises(InvalidRequestError, match="must not overlap"):
        explain(client, generation_id, step=0, segments=[range(3), range(2, 4)])
    with pytest.raises(NotFoundError):
        explain(client, "00000000-0000-4000-8000-00000000000f", step=0)
    with pytest.raises(FailedPreconditionError, match="keeps no token ids"):
        explain(client, run(client, content="none"), step=0)


def test_a_policy_without_texts_keeps_them_out_of_the_record(client: Client) -> None:
    generation_id = run(client, content="tokens")
    found = explain(client, generation_id, step=1, segments="words")[-1].result
    assert found.segments[0].text
    [kept] = [
        it.explained.explanation
        for it in client.generations.get(generation_id).occurrences
        if it.HasField("explained")
    ]
    assert list(kept.scores) == list(found.scores)
    assert [it.text for it in kept.segments] == [""] * len(found.segments)
    assert kept.span.text == ""
    assert kept.parameters


def test_a_deleted_generation_takes_its_explanations_along(client: Client) -> None:
    generation_id = run(client)
    explain(client, generation_id, step=1)
    client.generations.delete(generation_id)
    with pytest.raises(NotFoundError):
        explain(client, generation_id, step=1)


def test_a_running_generation_is_explained_up_to_now(server: ServerProcess, client: Client) -> None:
    engine = psutil.Process(server.engine_pid)
    # The engine may come to the end before it is held: what counts is one that did not.
    for _ in range(20):
        with client.generate(
            PROMPT, max_new_tokens=40, greedy=True, ignore_eos=True, disconnect_grace_s=0
        ) as stream:
            next(iter(stream))
            engine.suspend()
            try:
                found = explain(client, stream.id, step=0)[-1].result
                is_running = not client.generations.get(stream.id).HasField("finished")
            finally:
                engine.resume()
        assert found.span.begin_step == 0
        if is_running:
            return
    pytest.fail("each generation was over before it was explained")


@asynccontextmanager
async def suspended_analysis(
    server: ServerProcess, client: Client
) -> AsyncIterator[psutil.Process]:
    """Suspend the analysis process, once it has its model; a job that it gets does not end.

    The process is killed at the end: later jobs would wait for it.
    """
    explain(client, None, prompt=PROMPT, text=" twice")
    process = find_analysis(server)
    assert process is not None
    process.suspend()
    try:
        # A thread that still waits for input would take the question before it stops.
        threads = list(Path(f"/proc/{process.pid}/task").iterdir())
        await wait_until(lambda: all(_is_stopped(thread) for thread in threads), 60)
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _is_stopped(thread: Path) -> bool:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0] == "T"


async def wait_for_job(process: psutil.Process) -> None:
    """Wait until a suspended process has a question, which it cannot read."""

    def has_question() -> bool:
        with Path(f"/proc/{process.pid}/fd/0").open("rb") as pipe:
            return any(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))

    await wait_until(has_question, 60)


async def test_a_killed_process_ends_its_job_alone(server: ServerProcess, client: Client) -> None:
    async with suspended_analysis(server, client) as process:
        with (
            client.explain(prompt=PROMPT, text=" twice") as hanging,
            client.generate(PROMPT, max_new_tokens=8, greedy=True, ignore_eos=True) as stream,
        ):
            await wait_for_job(process)
            with client.explain(prompt=PROMPT, text=" once more") as waiting:
                assert next(waiting).progress.phase == pb.EXPLAIN_PHASE_WAITING
                process.kill()
                with pytest.raises(UnavailableError, match="it ended before its answer"):
                    list(hanging)
                assert list(waiting)[-1].result.span.text == " once more"
            assert len(list(stream)) == 8


async def test_a_cancelled_job_leaves_the_place_to_the_next(
    server: ServerProcess, client: Client
) -> None:
    async with suspended_analysis(server, client) as process:
        with client.explain(prompt=PROMPT, text=" twice"):
            await wait_for_job(process)
        assert explain(client, None, prompt=PROMPT, text=" twice")[-1].HasField("result")
        assert not process.is_running()


def test_the_command_prints_the_trust_first(
    server: ServerProcess,
    generation_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = tmp_path / "page.html"
    command = ["explain", generation_id, "--step", "1", "--target", server.target]
    assert main([*command, "--segments", "words", "--html", str(page)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("trust ")
    assert "(step 1), p = " in told
    assert "leave-one-out" in told
    assert "<title>Why " in page.read_text()
    assert main([*command, "--json"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["result"]["span"]["begin_step"] == 1
    assert main(["explain", generation_id, "--target", server.target]) == 2
    assert "--step" in capsys.readouterr().err
