"""Text processes: same results as in the front, and no effect of their failures on it."""

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from constraint_texts import json_schema, regex
from text_oracles import byte_level
from waiting import wait_until

from whence_server.domain.chat import ChatInput, ChatMessage
from whence_server.domain.decoding import DecodingRequest, GenerationDefaults, TokenInput
from whence_server.domain.errors import (
    DrainingError,
    InvalidRequestError,
    TextProcessError,
    TextQueueFullError,
)
from whence_server.domain.limits import Limits
from whence_server.domain.model import Environment, ModelInfo, TextFiles
from whence_server.domain.requests import GenerationRequest
from whence_server.generation import text_process
from whence_server.generation.prepare import Prepared, prepare_request
from whence_server.generation.texts import TextProcesses
from whence_server.text.tokenizer import TextTokenizer

TEMPLATE = """{%- set said = messages[0].content %}
{%- if said == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}
{%- elif said == 'power' %}{{ (said | length) ** (9 ** 9) }}
{%- elif said == 'large' %}{{ ('x' * 10 ** 9) | length }}
{%- elif said == 'block' %}{% set b %}{% for i in range(99999) %}{{ 'x' * 99999 }}{% endfor %}{% endset %}
{%- elif said == 'output' %}{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}
{%- elif said == 'refuse' %}{{ raise_exception('not that') }}
{%- endif %}{{ said }} {{ n }}"""  # noqa: E501 - a template's white space is output
MODEL = ModelInfo(
    name="m",
    architecture="A",
    num_parameters=1,
    num_layers=1,
    vocabulary_size=500,
    max_context_length=5_000_000,
    model_digest="0" * 64,
    tokenizer_digest="0" * 64,
    weights_digest="0" * 64,
    files=(),
    loaded_files=(),
    batched=True,
    environment=Environment("0", "0", "0", "float32", "cpu", 1, "sdpa"),
    defaults=GenerationDefaults(),
    text=TextFiles(byte_level().to_str(), TEMPLATE, {}),
)
LIMITS = Limits(max_template_s=0.3, max_cache_tokens=5_000_000)


def chat(content: str, arguments: str = "") -> GenerationRequest:
    given = ChatInput((ChatMessage("user", content),), arguments)
    return GenerationRequest(input=given, digest="d", size_bytes=len(content) + len(arguments))


def plain(text: str, **decoding: object) -> GenerationRequest:
    settings = DecodingRequest(**decoding)  # type: ignore[arg-type]
    return GenerationRequest(input=text, digest="d", size_bytes=len(text), decoding=settings)


LONG = "What a long text it is, 0123456789! " * 10_000
"""Text that takes about half a second of CPU time to tokenize."""


@pytest.fixture
async def processes() -> AsyncIterator[TextProcesses]:
    made = TextProcesses(MODEL, LIMITS)
    yield made
    await made.close()


async def fault(answer: Awaitable[object]) -> tuple[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        await answer
    (violation,) = caught.value.violations
    return violation.field, violation.description


async def test_text_processes_give_the_same_results_as_the_front(processes: TextProcesses) -> None:
    tokenizer = TextTokenizer(MODEL.text, MODEL.vocabulary_size)
    tokens = GenerationRequest(input=TokenInput((5, 6, 7) * 9_000), digest="d", size_bytes=27_000)
    for request in (
        chat("hello", '{"n":512}'),
        plain("naïve 😀" * 9_000, bad_words=("a", "b c"), stop=("x",)),
        plain("x", forced="so it goes " * 9_000),
        tokens,
    ):
        expected = prepare_request(request, model=MODEL, limits=LIMITS, tokenizer=tokenizer)
        assert await processes.prepare(request) == expected


async def test_text_processes_return_the_errors_of_the_front(processes: TextProcesses) -> None:
    assert await fault(processes.prepare(chat("refuse"))) == (
        "chat.messages",
        "refused by the chat template: not that",
    )
    field, description = await fault(processes.prepare(chat("hi", '{"n":')))
    assert field == "chat.template_arguments_json"
    assert "at character 5" in description
    with pytest.raises(InvalidRequestError) as caught:
        await processes.prepare(plain("x" * 5_000, stop=("", "")))
    assert [v.field for v in caught.value.violations] == ["decoding.stop[0]", "decoding.stop[1]"]


@pytest.mark.parametrize("said", ["loop", "power"])
async def test_an_endless_template_is_stopped(processes: TextProcesses, said: str) -> None:
    await processes.prepare(chat("hello"))
    (first,) = processes.pids
    field, description = await fault(processes.prepare(chat(said)))
    assert field == "chat"
    assert "chat template" in description
    assert "0.3 s" in description or "digits" in description
    assert (await processes.prepare(chat("hello"))).prompt == "hello "
    if "0.3 s" in description:
        assert first not in processes.pids


@pytest.mark.parametrize(
    ("said", "part"), [("large", "memory"), ("block", "memory"), ("output", "longer than 4000000")]
)
async def test_a_template_beyond_its_memory_limit_is_refused(said: str, part: str) -> None:
    # Time enough for what is only meant to be large, on any machine.
    processes = TextProcesses(MODEL, dataclasses.replace(LIMITS, max_template_s=30))
    field, description = await fault(processes.prepare(chat(said)))
    assert field == "chat"
    assert part in description
    assert (await processes.prepare(chat("hello"))).prompt == "hello "
    await processes.close()


async def compile_in_time(processes: TextProcesses, pattern: str) -> Prepared:
    """Prepare a request until a process has compiled its constraint without being held up."""
    async with asyncio.timeout(60):
        while True:
            with suppress(InvalidRequestError):
                return await processes.prepare(plain("x", constraint=regex(pattern)))


async def test_a_constraint_is_compiled_in_a_process_and_refused_after_a_time() -> None:
    model = dataclasses.replace(MODEL, defaults=GenerationDefaults(eos_token_ids=(1,)))
    processes = TextProcesses(model, dataclasses.replace(LIMITS, max_constraint_s=0.1))
    try:
        ready = await compile_in_time(processes, "a+")
        assert ready.decoding.constraint == regex("a+")
        # Its automaton counts remainders: it compiles for a second.
        slow = json_schema({"type": "integer", "multipleOf": 99991})
        assert await fault(processes.prepare(plain("x", constraint=slow))) == (
            "decoding.constraint.json_schema",
            "takes too long to compile: stopped after 0.1 s",
        )
        # Another process has taken over.
        await compile_in_time(processes, "b+")
    finally:
        await processes.close()


async def test_other_requests_do_not_wait_for_an_endless_template(processes: TextProcesses) -> None:
    # In both processes, once and again: the others are served between.
    looping = [asyncio.create_task(fault(processes.prepare(chat("loop")))) for _ in range(3)]
    served = await asyncio.gather(*(processes.prepare(chat(f"{i}")) for i in range(20)))
    assert [one.prompt for one in served] == [f"{i} " for i in range(20)]
    for field, _ in await asyncio.gather(*looping):
        assert field == "chat"


async def test_the_event_loop_is_not_blocked_by_a_long_text(
    processes: TextProcesses,
) -> None:
    # Both processes have started: the short texts do not wait for that.
    await asyncio.gather(*(processes.prepare(chat("hello")) for _ in range(2)))
    preparing = asyncio.create_task(processes.prepare(plain(LONG * 2)))
    num_turns = num_chats = 0
    while not preparing.done():
        assert (await processes.prepare(chat("hello"))).prompt == "hello "
        num_chats += 1
        await asyncio.sleep(0)
        num_turns += 1
    assert len((await preparing).token_ids) > 100_000
    assert min(num_turns, num_chats) > 3


async def test_the_process_of_a_cancelled_request_is_killed(
    processes: TextProcesses,
) -> None:
    preparing = asyncio.create_task(processes.prepare(plain(LONG * 4)))
    await wait_until(lambda: any(lane.job for lane in processes._lanes))
    (busy,) = [lane.process.pid for lane in processes._lanes if lane.job and lane.process]
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    await wait_until(lambda: not psutil.pid_exists(busy))
    assert len((await processes.prepare(plain("x" * 70_000))).token_ids) > 1_000


async def test_a_cancelled_short_request_does_not_kill_its_process(
    processes: TextProcesses,
) -> None:
    await processes.prepare(chat("hello"))
    before = processes.pids
    for _ in range(5):
        preparing = asyncio.create_task(processes.prepare(chat("hello")))
        await asyncio.sleep(0)
        preparing.cancel()
    await processes.prepare(chat("hello"))
    assert set(before) <= set(processes.pids)


async def test_waiting_requests_are_limited_in_bytes() -> None:
    processes = TextProcesses(MODEL, dataclasses.replace(LIMITS, max_waiting_text_bytes=1_500_000))
    first = asyncio.create_task(processes.prepare(plain(LONG * 4)))
    await asyncio.sleep(0)
    with pytest.raises(TextQueueFullError, match="1500000 bytes"):
        await processes.prepare(plain(LONG))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert (await processes.prepare(chat("hello"))).prompt == "hello "
    await processes.close()


async def test_closing_fails_running_and_waiting_requests() -> None:
    # Nothing ends by itself before the close, however late that comes.
    processes = TextProcesses(MODEL, dataclasses.replace(LIMITS, max_template_s=600))
    await processes.prepare(chat("hello"))
    waiting = [
        asyncio.create_task(processes.prepare(request))
        for request in (chat("loop"), chat("loop"), chat("hello"), plain(LONG), plain(LONG))
    ]
    await asyncio.sleep(0.05)
    pids = processes.pids
    await processes.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, DrainingError)
    assert not any(psutil.pid_exists(pid) for pid in pids)
    with pytest.raises(DrainingError):
        await processes.prepare(chat("hello"))


async def test_a_killed_process_is_replaced(processes: TextProcesses) -> None:
    await processes.prepare(chat("hello"))
    (pid,) = processes.pids
    os.kill(pid, signal.SIGKILL)
    assert (await processes.prepare(chat("hello"))).prompt == "hello "
    assert pid not in processes.pids


async def test_a_request_that_kills_two_processes_fails(
    processes: TextProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = "import sys; from whence_server.generation import text_worker as w; "
    dying += "w._answer = lambda *_: sys.exit(7); sys.exit(w.main(int(sys.argv[1])))"
    monkeypatch.setattr(text_process, "COMMAND", (sys.executable, "-c", dying))
    with pytest.raises(TextProcessError, match="exit status 7"):
        await processes.prepare(chat("hello"))


async def test_a_process_that_does_not_start_fails_requests_with_the_reason(
    processes: TextProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_process, "COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(TextProcessError, match="status 3 before it was ready"):
        await processes.prepare(chat("hello"))
    monkeypatch.setattr(text_process, "COMMAND", ("/nowhere",))
    with pytest.raises(TextProcessError, match="cannot be started"):
        await processes.prepare(chat("hello"))


async def test_a_stopped_process_exceeds_the_wall_time_limit(
    processes: TextProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    await processes.prepare(chat("hello"))
    (pid,) = processes.pids
    monkeypatch.setattr(text_process, "_WALL_FACTOR", 0.2 / LIMITS.max_text_s)
    os.kill(pid, signal.SIGSTOP)
    field, description = await fault(processes.prepare(chat("hello")))
    assert field == "chat"
    assert "takes too long" in description
    monkeypatch.undo()
    assert (await processes.prepare(chat("hello"))).prompt == "hello "


async def test_a_process_without_cpu_time_is_replaced_and_its_request_retried(
    processes: TextProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_process, "_LOOK_S", 0.05)
    await processes.prepare(chat("hello"))
    (pid,) = processes.pids
    os.kill(pid, signal.SIGSTOP)
    assert (await processes.prepare(chat("hello"))).prompt == "hello "
    assert pid not in processes.pids


async def test_a_process_stopped_before_it_is_ready_is_replaced(
    processes: TextProcesses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(text_process, "_LOOK_S", 0.1)
    first = tmp_path / "first"
    code = (
        "import os, pathlib, runpy, signal, sys\n"
        f"first = pathlib.Path({str(first)!r})\n"
        "if not first.exists():\n"
        "    first.touch()\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "runpy.run_module('whence_server.generation.text_worker', run_name='__main__')\n"
    )
    monkeypatch.setattr(text_process, "COMMAND", (sys.executable, "-c", code))
    assert (await processes.prepare(plain(LONG))).prompt == LONG
    assert first.exists()


async def test_a_process_that_keeps_too_much_memory_is_replaced(processes: TextProcesses) -> None:
    assert await processes.prepare(plain(LONG))
    # Whether this one kept it or gave it back, the next is served.
    assert (await processes.prepare(plain("x" * 70_000))).prompt == "x" * 70_000


FRONT = """
import asyncio, sys
import test_texts as t

async def main():
    processes = t.TextProcesses(t.MODEL, t.dataclasses.replace(t.LIMITS, max_template_s=600))
    await processes.prepare(t.chat("hello"))
    asyncio.ensure_future(processes.prepare(t.chat("loop")))
    await t.wait_until(lambda: any(lane.job for lane in processes._lanes))
    await asyncio.sleep(0.2)
    print(*processes.pids, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_text_processes_end_when_the_front_is_killed() -> None:
    tests = os.path.dirname(__file__)  # noqa: PTH120 - part of a variable
    support = os.path.join(os.path.dirname(tests), "support")  # noqa: PTH118, PTH120
    path = os.pathsep.join([tests, support])
    with subprocess.Popen(
        [sys.executable, "-c", FRONT],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as front:
        assert front.stdout is not None
        looping = [psutil.Process(int(pid)) for pid in front.stdout.readline().split()]
        assert looping
        front.kill()
    assert psutil.wait_procs(looping, timeout=60)[1] == []


def test_text_processes_do_not_import_torch() -> None:
    code = "import whence_server.generation.text_worker, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "transformers", "numba", "grpc", "google.protobuf"} & set(loaded)
