"""The command against a server that does as it is told."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from client_fake_server import (
    TEXT,
    TOKEN_IDS,
    Break,
    FakeServer,
    Hold,
    journal,
    steps,
)
from whence_command import Done, run_whence

from whence.v1 import generation_pb2 as pb
from whence.v1 import trace_pb2


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def command(server: FakeServer | str, *arguments: str, **environment: str) -> Done:
    target = server if isinstance(server, str) else server.target
    return run_whence(*arguments, WHENCE_TARGET=target, **environment)


def test_the_command_prints_the_text_and_sums_it_up(server):
    done = command(server, "generate", "The", "--seed", "1", "--label", "a=b", "--stop", "x")
    assert (done.returncode, done.stdout) == (0, TEXT + "\n")
    assert "5 tokens" in done.stderr
    assert "finished: length" in done.stderr
    assert "ab" * 16 in done.stderr
    (request,) = server.script.calls
    assert (request.decoding.sample.seed, list(request.decoding.stop)) == (1, ["x"])
    assert request.labels == {"a": "b"}


def test_the_command_prints_json(server):
    done = command(server, "generate", "The", "--json")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [fields["event"] for fields in objects] == ["started", *["token"] * 5, "finished"]
    assert objects[1] == {
        "event": "token",
        "sequence_index": 0,
        "index": 0,
        "token_id": 1,
        "text": "Hello",
        "text_begin_byte": 0,
        "text_end_byte": 5,
        "logprob": -0.6931472,
        "sampling_logprob": -0.2876821,
        "rank": 0,
        "entropy": 1.25,
        "candidates": [
            {
                "token_id": 1,
                "text": "Hello",
                "logprob": -0.6931472,
                "sampling_logprob": -0.2876821,
            },
            {"token_id": 5, "text": "<0xC3>", "logprob": -1.3862944, "sampling_logprob": None},
        ],
        "processors": [
            {"name": "temperature", "num_kept": 4, "removed_mass": 0.25, "token_logprob": -0.5}
        ],
        "draw": {"noise": 0.125, "margin": 2.0},
        "timing": {
            "elapsed_ns": 1,
            "forward_ns": 2,
            "select_ns": 3,
            "batch_size": 4,
            "context_length": 5,
        },
    }
    assert objects[-1]["finish_reason"] == "length"
    assert objects[-1]["sequences"][0]["text"] == TEXT
    assert done.stdout.isascii()


def test_the_command_warns_of_tokens_that_the_server_lost(server):
    server.script.recorded = journal(steps()[:2], reason=pb.FINISH_REASON_INTERRUPTED)
    server.script.turns.append(Break(5))
    done = command(server, "generate", "The", "--json", "--quiet")
    assert done.returncode == 1
    assert done.stderr.startswith("warning: the last 2 tokens are not on record")
    *tokens, finished = [json.loads(line) for line in done.stdout.splitlines()]
    assert [fields["event"] for fields in tokens] == ["started", *["token"] * 4]
    assert (finished["num_generated_tokens"], finished["num_unrecorded_tokens"]) == (2, 2)
    server.script.turns.append(Break(5))
    assert command(server, "generate", "The").stderr.count("warning") == 1


def test_the_command_warns_of_a_generation_that_is_not_on_record(server):
    server.script.events[0].started.unrecorded_reason = "JOURNAL_FULL"
    told = command(server, "generate", "The", "--quiet").stderr
    assert told.startswith("warning: this generation is not on record")
    assert "(JOURNAL_FULL)" in told
    started, *_ = command(server, "generate", "The", "--json").stdout.splitlines()
    assert json.loads(started)["unrecorded_reason"] == "JOURNAL_FULL"


def test_colour_is_asked_for_and_refused(server):
    assert "\x1b[38;5;" in command(server, "generate", "The", "--color", "always").stdout
    assert "\x1b" not in command(server, "generate", "The").stdout
    assert "\x1b" not in command(server, "generate", "The", "--color", "never").stdout


def test_control_characters_do_not_reach_the_terminal(server):
    server.script.events = journal(steps((1, 4, 2)))
    done = command(server, "generate", "The", "--color", "never")
    assert done.stdout == "Hello\\x1b[31m world\n"
    assert "\x1b" not in command(server, "generations", "list").stdout


def test_candidates_are_a_table(server):
    done = command(server, "generate", "The", "--candidates")
    heading, first, *_ = done.stdout.splitlines()
    assert heading.split() == ["token", "p", "rank", "runners-up"]
    assert first.split() == ["0/0", '"Hello"', "50.0%", "0", '"<0xC3>"', "25.0%"]


def test_exit_status_tells_failures_apart(server):
    failure = pb.Failure(code=13, reason="NON_FINITE_LOGITS", message="logits are NaN")
    server.script.events = journal(reason=pb.FINISH_REASON_FAILED, failure=failure)
    for form in ([], ["--json"]):
        failed = command(server, "generate", "The", *form)
        assert failed.returncode == 1
        assert "failed" in failed.stderr
    for code, status in (
        (grpc.StatusCode.INVALID_ARGUMENT, 2),
        (grpc.StatusCode.INTERNAL, 1),
    ):
        server.script.turns.append(Break(0, code))
        assert command(server, "generate", "The").returncode == status
    contradiction = command(server, "generate", "The", "--greedy", "--top-k", "3")
    assert contradiction.returncode == 2
    assert "`greedy`" in contradiction.stderr
    assert "`top_k`" in contradiction.stderr
    nobody = command("unix:/nonexistent/socket", "generate", "x", "--connect-timeout", "0.1")
    assert nobody.returncode == 3
    assert command("nowhere", "model").returncode == 2


def test_the_summary_ends_with_a_link_to_the_trace(server):
    page = {"WHENCE_TRACE_URL": "http://localhost:16686/trace/{trace_id}"}
    link = "http://localhost:16686/trace/" + "ab" * 16
    assert command(server, "generate", "The", **page).stderr.splitlines()[-1] == link
    assert link not in command(server, "generate", "The", "--quiet", **page).stderr
    other = ["--trace-url", "https://h/{trace_id}?q={x}"]
    ours = command(server, "generate", "The", *other, **page)
    assert ours.stderr.splitlines()[-1] == f"https://h/{'ab' * 16}?q={{x}}"
    assert "http" not in command(server, "generate", "The", "--trace-url", "", **page).stderr
    wrong = command(server, "generate", "The", WHENCE_TRACE_URL="http://localhost:16686/trace/")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "$WHENCE_TRACE_URL 'http://localhost:16686/trace/' does not say where" in wrong.stderr
    server.script.events[0].started.trace_flags = 0  # no span is made of it
    assert "http" not in command(server, "generate", "The", **page).stderr


def test_the_command_lists_shows_and_deletes_recorded_generations(server):
    listed = command(server, "generations", "list", "--json", "--limit", "3", "--label", "k=v")
    ids = [json.loads(line)["generation_id"] for line in listed.stdout.splitlines()]
    assert ids == ["g00", "g01", "g10"]
    shown = command(server, "generations", "show", "g", "--steps")
    assert TEXT in shown.stdout
    assert '" world"' in shown.stdout
    as_json = command(server, "generations", "show", "g", "--steps", "--json").stdout.splitlines()
    assert json.loads(as_json[0])["summary"]["generation_id"] == "g"
    assert json.loads(as_json[1])["token_id"] == TOKEN_IDS[0]
    assert command(server, "generations", "delete", "g").returncode == 2
    assert not server.script.requests(trace_pb2.DeleteGenerationRequest)
    assert command(server, "generations", "delete", "g", "--yes").returncode == 0
    assert server.script.requests(trace_pb2.DeleteGenerationRequest)
    assert "fake" in command(server, "model").stdout
    assert json.loads(command(server, "model", "--json").stdout)["tokenizer_digest"] == "t1"


@pytest.mark.parametrize("arguments", [["generate", "The"], ["generations", "watch", "--json"]])
def test_an_interrupt_ends_the_command(server, arguments):
    server.script.turns.append(Hold(2))
    running = subprocess.Popen(
        [sys.executable, "-m", "whence.cli", *arguments, "--target", server.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with running:
        assert running.stdout.read(5)
        running.send_signal(signal.SIGINT)
        stdout, stderr = running.communicate(timeout=30)
    assert running.returncode == 130, (stdout, stderr)
    assert b"Traceback" not in stderr
    assert server.script.cancelled.is_set() == (arguments[0] == "generate")


def test_a_reader_that_goes_away_ends_the_command_quietly(server):
    server.script.turns.append(Hold(4))
    running = subprocess.Popen(
        [sys.executable, "-m", "whence.cli", "generate", "x", "--json", "--target", server.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running.stdout.close()
    with running:
        stderr = running.stderr.read()
    assert (running.returncode, stderr) == (141, b"")
    assert server.script.cancelled.is_set()
