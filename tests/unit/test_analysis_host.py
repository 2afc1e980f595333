"""The front's handle on the analysis process: turns, bounds, cancel and failures."""

import asyncio
import sys
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import wait_until

from whence_server.analysis.host import MAX_OF_CALLER, AnalysisHost
from whence_server.analysis.setup import AnalysisSetup
from whence_server.domain.errors import AnalysisFailedError, VerificationBusyError

HANG: Any = "hang"
PROGRAM = """
import sys, time
from whence_server.analysis.question import Done, Failed, Found
from whence_server.processes import channel
def receive():
    header = sys.stdin.buffer.read(channel.HEADER.size)
    if not header: sys.exit(3)
    (length,) = channel.HEADER.unpack(header)
    return channel.decode(sys.stdin.buffer.read(length))
def send(answer):
    sys.stdout.buffer.write(channel.encode(answer)); sys.stdout.buffer.flush()
setup = receive()
while True:
    question = receive()
    if question == "fail":
        send(Failed("it is broken")); sys.exit(1)
    if question == "die":
        sys.exit(7)
    send(Found(b"first"))
    if question == "hang":
        time.sleep(600)
    send(Found(str(question).encode())); send(Done())
"""


@pytest.fixture
def host(tmp_path: Path) -> AnalysisHost:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    setup = AnalysisSetup(None, "", 1)
    return AnalysisHost(lambda: setup, (sys.executable, str(program)))


async def ask(host: AnalysisHost, question: Any, caller: str = "alice") -> list[bytes]:
    return [message async for message in host.ask(question, caller)]


async def test_one_process_answers_one_question_after_the_other(host: AnalysisHost) -> None:
    assert await ask(host, "a") == [b"first", b"a"]
    pid = host.pid
    answers = await asyncio.gather(ask(host, "b"), ask(host, "c", "bob"))
    assert list(answers) == [[b"first", b"b"], [b"first", b"c"]]
    assert host.pid == pid
    await host.close()
    assert host.pid is None
    assert not psutil.pid_exists(pid or 0)


async def test_a_cancelled_question_kills_the_process_and_the_next_one_is_answered(
    host: AnalysisHost,
) -> None:
    async with aclosing(host.ask(HANG, "alice")) as messages:
        assert await anext(messages) == b"first"
        pid = host.pid
        assert pid is not None
    assert not psutil.pid_exists(pid)
    assert await ask(host, "d") == [b"first", b"d"]
    assert host.pid != pid
    await host.close()


async def test_a_caller_has_a_bounded_number_of_questions(host: AnalysisHost) -> None:
    async with aclosing(host.ask(HANG, "alice")) as messages:
        await anext(messages)
        waiting = [asyncio.create_task(ask(host, n)) for n in range(MAX_OF_CALLER - 1)]
        await asyncio.sleep(0)
        with pytest.raises(VerificationBusyError):
            await ask(host, "one too many")
        other = asyncio.create_task(ask(host, "e", "bob"))
    assert await other == [b"first", b"e"]
    assert len(await asyncio.gather(*waiting)) == MAX_OF_CALLER - 1
    await host.close()


@pytest.mark.parametrize("question", ["fail", "die"])
async def test_a_failure_is_an_error_and_the_next_question_has_a_new_process(
    host: AnalysisHost, question: str
) -> None:
    with pytest.raises(AnalysisFailedError):
        await ask(host, question)
    assert await ask(host, "f") == [b"first", b"f"]
    await host.close()


async def test_an_idle_process_ends_and_another_analysis_has_its_place(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    setup = AnalysisSetup(None, "", 1)
    host = AnalysisHost(lambda: setup, (sys.executable, str(program)), idle_s=0.01)
    await ask(host, "g")
    await wait_until(lambda: host.pid is None, 60)
    await ask(host, "h")
    async with host.keep_out():
        assert host.pid is None
        assert host.is_busy
    await host.close()
