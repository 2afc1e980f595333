"""The front's handle on the analysis process: turns, bounds, cancel and failures."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import psutil
import pytest
from waiting import wait_until

from whence.v1 import verification_pb2 as pb
from whence_server.analysis.host import MAX_OF_CALLER, AnalysisHost
from whence_server.analysis.question import Question
from whence_server.analysis.setup import AnalysisSetup
from whence_server.domain.errors import AnalysisFailedError, VerificationBusyError

HANG = "hang"
PROGRAM = """
import sys, time
from whence_server.analysis.question import Done, Failed, Found, Part, join_question
from whence_server.processes import channel
def receive():
    header = sys.stdin.buffer.read(channel.HEADER.size)
    if not header: sys.exit(3)
    (length,) = channel.HEADER.unpack(header)
    return channel.decode(sys.stdin.buffer.read(length))
def take():
    parts = []
    while isinstance(message := receive(), Part):
        parts.append(message)
    return join_question(parts, message)
def send(answer):
    sys.stdout.buffer.write(channel.encode(answer)); sys.stdout.buffer.flush()
setup = receive()
while True:
    whole = take()
    question = whole.generation_id
    if question == "fail":
        send(Failed("it is broken")); sys.exit(1)
    if question == "die":
        sys.exit(7)
    send(Found(b"first"))
    if question == "hang":
        time.sleep(600)
    if question == "much":
        for _ in range(40):
            send(Found(bytes(1 << 18)))
    if question == "large":
        question = len(whole.steps), whole.steps == list(range(len(whole.steps)))
    send(Found(str(question).encode())); send(Done())
"""


@pytest.fixture
def host(tmp_path: Path) -> AnalysisHost:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    setup = AnalysisSetup(None, "", 1)
    return AnalysisHost(lambda: setup, (sys.executable, str(program)))


def make(text: str, steps: Sequence[Any] = ()) -> Callable[[], Awaitable[Question]]:
    """Return the maker of a question whose id is a text."""
    rest: Any = dict.fromkeys(Question._fields) | {"rounds": [], "prompt_decisions": []}
    question = Question(**rest | {"generation_id": text, "steps": list(steps)})

    async def give() -> Question:
        return question

    return give


async def ask(host: AnalysisHost, question: str, caller: str = "alice") -> list[bytes]:
    return [message async for message in host.ask(make(question), caller)]


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
    async with aclosing(host.ask(make(HANG), "alice")) as messages:
        assert await anext(messages) == b"first"
        pid = host.pid
        assert pid is not None
    assert not psutil.pid_exists(pid)
    assert await ask(host, "d") == [b"first", b"d"]
    assert host.pid != pid
    await host.close()


async def test_a_caller_has_a_bounded_number_of_questions(host: AnalysisHost) -> None:
    async with aclosing(host.ask(make(HANG), "alice")) as messages:
        await anext(messages)
        waiting = [asyncio.create_task(ask(host, str(n))) for n in range(MAX_OF_CALLER - 1)]
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


async def test_a_question_at_the_end_of_the_idle_time_has_a_new_process(host: AnalysisHost) -> None:
    await ask(host, "g")
    first = host.pid
    asking = asyncio.create_task(ask(host, "h"))
    await asyncio.sleep(0)
    host._end_idle()
    assert await asking == [b"first", b"h"]
    assert host.pid not in {None, first}
    await host.close()


async def test_a_caller_who_does_not_read_holds_nobody(host: AnalysisHost) -> None:
    async with aclosing(host.ask(make("b"), "alice")) as messages:
        assert await anext(messages) == b"first"
        assert await ask(host, "c", "bob") == [b"first", b"c"]
        assert await anext(messages) == b"b"
    await host.close()


async def test_an_answer_that_fills_its_memory_and_is_not_read_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    setup = AnalysisSetup(None, "", 1)
    host = AnalysisHost(lambda: setup, (sys.executable, str(program)), patience_s=0.2)
    async with aclosing(host.ask(make("much"), "alice")) as messages:
        assert await anext(messages) == b"first"
        # Ten megabytes wait, of which four are kept.
        assert await ask(host, "c", "bob") == [b"first", b"c"]
        with pytest.raises(AnalysisFailedError, match="not read"):
            async for _ in messages:
                pass
    await host.close()


async def test_a_verification_has_a_limit_of_time(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    setup = AnalysisSetup(None, "", 1)
    host = AnalysisHost(lambda: setup, (sys.executable, str(program)), longest_s=0.01)
    *_, last = await ask(host, HANG)
    result = pb.VerifyGenerationResponse.FromString(last).result
    assert (result.verdict, result.reason) == (pb.VERDICT_NOT_VERIFIABLE, "TOO_LONG")
    assert host.pid is None
    await host.close()


async def test_a_large_question_is_sent_in_parts_and_arrives_whole(host: AnalysisHost) -> None:
    asked = host.ask(make("large", range(1_201)), "alice")
    assert [message async for message in asked] == [b"first", b"(1201, True)"]
    await host.close()


async def test_a_question_that_cannot_be_made_frees_its_turn(host: AnalysisHost) -> None:
    async def fail() -> Question:
        raise LookupError("it is gone")

    with pytest.raises(LookupError, match="it is gone"):
        async for _ in host.ask(fail, "alice"):
            pass
    assert not host.is_busy
    assert await ask(host, "f") == [b"first", b"f"]
    await host.close()
