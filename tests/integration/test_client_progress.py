"""Progress of a quiet generation in the client: hidden from iteration, shown on a terminal."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator

import pytest
from client_fake_server import TOKEN_IDS, Break, FakeServer, journal
from whence_command import run_whence

import whence
from whence.cli.progress_line import describe_progress
from whence.v1 import generation_pb2 as pb

COMMAND = (sys.executable, "-m", "whence.cli", "generate", "The")
QUEUED = pb.GenerationProgress(
    phase=pb.GENERATION_PHASE_QUEUED, num_generations_ahead=2, num_prompt_tokens=9
)
GENERATING = pb.GenerationProgress(
    phase=pb.GENERATION_PHASE_GENERATING, num_prompt_tokens=9, num_generated_tokens=2
)


def repeat_offset(offset: int, progress: pb.GenerationProgress) -> pb.GenerationEvent:
    return pb.GenerationEvent(first_offset=offset, last_offset=offset, progress=progress)


def quiet_journal() -> list[pb.GenerationEvent]:
    """Return a complete generation that is quiet before its start and after its second token."""
    events = journal()
    return [
        repeat_offset(0, QUEUED),
        *events[:3],
        repeat_offset(3, GENERATING),
        repeat_offset(3, GENERATING),
        *events[3:],
    ]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        running.script.events = quiet_journal()
        yield running


def test_iteration_yields_tokens_alone_over_breaks_after_every_message(server: FakeServer) -> None:
    server.script.turns.extend([Break(1), Break(2), Break(2), Break(1)])
    with whence.Client(server.target) as client, client.generate("The") as generation:
        assert [token.token_id for token in generation] == list(TOKEN_IDS)
        assert generation.progress is None


def test_events_have_the_progress_only_if_asked(server: FakeServer) -> None:
    with whence.Client(server.target) as client:
        with client.generate("The") as generation:
            events = list(generation.events())
        assert [event.last_offset for event in events] == list(range(1, len(TOKEN_IDS) + 3))
        seen = []
        with client.generate("The") as generation:
            for event in generation.events(progress=True):
                assert generation.progress == (
                    event.progress if event.HasField("progress") else None
                )
                seen.append(event)
    assert [event.last_offset for event in seen] == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]
    assert [event.progress for event in seen if event.HasField("progress")] == [
        QUEUED,
        GENERATING,
        GENERATING,
    ]


async def test_events_have_the_progress_only_if_asked_async(server: FakeServer) -> None:
    async with whence.AsyncClient(server.target) as client:
        async with client.generate("The") as generation:
            assert [token.token_id async for token in generation] == list(TOKEN_IDS)
        async with client.generate("The") as generation:
            events = [event async for event in generation.events(progress=True)]
    assert sum(event.HasField("progress") for event in events) == 3


def read_on_terminal(server: FakeServer, *flags: str) -> str:
    """Return what `whence generate` writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    with subprocess.Popen(
        [*COMMAND, "--target", server.target, *flags],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        written = b""
        try:
            while piece := os.read(ours, 65_536):
                written += piece
        except OSError:  # Linux's way to say that nobody writes to the terminal any more
            pass
        finally:
            os.close(ours)
        assert process.wait() == 0
    return written.decode()


def test_one_generation_and_one_token_are_singular() -> None:
    queued = pb.GenerationProgress(phase=pb.GENERATION_PHASE_QUEUED, num_generations_ahead=1)
    generating = pb.GenerationProgress(phase=pb.GENERATION_PHASE_GENERATING, num_generated_tokens=1)
    assert describe_progress(queued) == "queued, 1 generation ahead"
    assert describe_progress(generating) == "generating, 1 token so far"


def test_terminal_shows_the_progress_below_the_text_and_erases_it(server: FakeServer) -> None:
    written = read_on_terminal(server)
    below, erased = "\x1bD\x1b[A\x1b7\x1bD\r\x1b[2K", "\x1b8"
    queued = f"{below}queued, 2 generations ahead{erased}"
    generating = f"{below}generating, 2 tokens so far{erased}"
    nothing = f"{below}{erased}"
    assert written.startswith(f"{queued}{nothing}Hello world{generating}{generating}{nothing}!")
    plain = read_on_terminal(server, "--quiet")
    assert "\x1b" not in plain


def test_pipe_gets_no_progress(server: FakeServer) -> None:
    for flags in ([], ["--json"], ["--candidates"]):
        result = run_whence("generate", "The", "--target", server.target, *flags)
        assert result.returncode == 0
        assert "queued" not in result.stdout + result.stderr
        assert "progress" not in result.stdout
