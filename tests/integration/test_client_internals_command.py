"""Internals and pages of the command, against a scripted server."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from client_fake_server import TOKEN_IDS, VOCABULARY, FakeServer, journal
from internals_steps import internals_journal, internals_step

from whence.cli.main import main
from whence.v1 import generation_pb2 as pb
from whence.v1.step_pb2 import Step

TEXT = b"".join(VOCABULARY[token_id] for token_id in TOKEN_IDS).decode()


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def command(server, capsys) -> Callable[..., Done]:
    def run(*arguments: str) -> Done:
        try:
            status = main([*arguments, "--target", server.target])
        except SystemExit as exit_:  # argparse's own
            status = exit_.code
        return Done(status, *capsys.readouterr())

    return run


def test_internals_are_asked_for_and_shown(server, command):
    server.script.events = internals_journal()
    plain = command("generate", "The", "--internals")
    assert (plain.returncode, "\x1b" in plain.stdout) == (0, False)
    assert plain.stdout.count("drew on") == plain.stdout.count("leading") == len(TOKEN_IDS)
    assert "48;5;" in command("generate", "The", "--internals", "--color=always").stdout
    as_json = command("generate", "The", "--internals", "--json").stdout.splitlines()
    assert json.loads(as_json[1])["internals"]["self_share"] == 0.25
    asked = server.script.requests(pb.GenerateRequest)
    assert {request.trace.detail for request in asked} == {pb.TRACE_DETAIL_INTERNALS}
    refused = command("generate", "The", "--internals", "--detail", "tokens")
    assert (refused.returncode, "--detail tokens" in refused.stderr) == (2, True)


def test_what_a_model_cannot_give_is_said_once(server, command):
    server.script.events = journal()
    server.script.events[0].started.unavailable["sources"] = "it has no attention"
    done = command("generate", "The", "--internals")
    assert done.stdout.count("no sources: it has no attention") == 1
    assert "it has no attention" in command("generations", "show", "g").stdout


def test_one_step_of_a_recorded_generation_is_shown(server, command):
    server.script.events = internals_journal()
    shown = command("generations", "show", "g", "--step", "3").stdout
    assert "0/3" in shown
    assert "0/2" not in shown
    assert "drew on" in shown
    as_json = command("generations", "show", "g", "--step", "3", "--json").stdout
    _, step = map(json.loads, as_json.splitlines())
    assert (step["index"], step["internals"]["self_share"]) == (3, 0.25)
    for wrong, said in (
        (["--step", "9"], "sequence 0 has no step 9: 5 are recorded"),
        (["--step", "0", "--sequence", "1"], "sequence 1 has no step 0: 0 are recorded"),
        (["--sequence", "1"], "--step"),
        (["--step", "-1"], "--step"),
        (["--step", "1", "--steps"], "--step"),
    ):
        refused = command("generations", "show", "g", *wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True), wrong


def test_bytes_that_are_no_character_are_told_apart(server, command):
    server.script.events = internals_journal()
    rows = command("generate", "The", "--candidates").stdout.splitlines()
    assert '"<0xC3>"' in rows[1]
    assert "\ufffd" not in command("generations", "show", "g", "--step", "0").stdout


def with_traced_prompt() -> list[pb.GenerationEvent]:
    """Return a prompt's steps: the first has no probability, the others have candidates."""
    started, *rest = internals_journal()
    started.started.effective_trace.prompt = True
    steps = [Step(index=0, token_id=0)]
    for index, token_id in enumerate((1, 2), 1):
        made = internals_step(index, token_id, VOCABULARY[token_id].decode())
        made.ClearField("internals")
        steps.append(made)
    # In two messages, as a long prompt comes.
    parts = [pb.StepBatch(steps=steps[:2]), pb.StepBatch(steps=steps[2:])]
    events = [started, *(pb.GenerationEvent(prompt_steps=part) for part in parts), *rest]
    for offset, event in enumerate(events, 1):
        event.first_offset = event.last_offset = offset
    return events


def test_the_prompts_tokens_have_their_table(server, command):
    server.script.events = with_traced_prompt()
    for form in ("--candidates", "--internals"):
        done = command("generate", "The", "--trace-prompt", form)
        rows = done.stdout.splitlines()
        assert rows[0].split() == ["prompt", "token", "p", "rank", "runners-up"]
        assert [row.split()[:2] for row in rows[1:3]] == [["0", '"<s>"'], ["1", '"Hello"']]
        assert rows[2].split()[-2] == '"<0xC3>"', "with its runner-up"
        assert rows[4].split()[0] == "token"
        assert rows[5].split()[:2] == ["0/0", '"Hello"']
        assert ("drew on" in done.stdout) is (form == "--internals")
        assert "no internals" not in done.stdout


def test_a_recorded_prompts_tokens_are_shown_with_the_steps(server, command):
    server.script.events = with_traced_prompt()
    shown = command("generations", "show", "g", "--steps").stdout
    assert [line.split()[0] for line in shown.splitlines() if "runners-up" in line] == [
        "prompt",
        "token",
    ]
    objects = command("generations", "show", "g", "--steps", "--json").stdout.splitlines()
    events = [json.loads(each).get("event") for each in objects[1:]]
    assert events == ["prompt_token"] * 3 + ["token"] * len(TOKEN_IDS)
    one = command("generations", "show", "g", "--step", "1", "--prompt").stdout
    assert '"Hello"' in one
    assert "no internals" not in one
    for wrong, said in (
        (["--step", "3", "--prompt"], "the prompt has no step 3: 3 are recorded"),
        (["--prompt"], "--prompt needs --step"),
        (["--step", "0", "--sequence", "0", "--prompt"], "contradicts --sequence"),
    ):
        refused = command("generations", "show", "g", *wrong)
        assert (refused.returncode, said in refused.stderr) == (2, True), wrong


def test_the_page_of_a_generation_is_written(server, command, tmp_path):
    server.script.events = internals_journal()
    live, recorded = tmp_path / "live.html", tmp_path / "recorded.html"
    for form in ([], ["--json"], ["--candidates"]):
        done = command("generate", "The", *form, "--html", str(live))
        assert done.returncode == 0, done.stderr
        assert page_data(live)["sequences"][0]["text"] == TEXT
        live.unlink()
    assert command("generate", "The", "--html", str(live)).returncode == 0
    assert command("generations", "show", "g", "--html", str(recorded)).returncode == 0
    assert page_data(live)["sequences"] == page_data(recorded)["sequences"]
    assert page_data(live)["vocabulary"]["1"] == "Hello"


def test_another_models_vocabulary_is_not_taken_for_this_ones(server, command, tmp_path):
    server.script.events = internals_journal()
    server.script.events[0].started.tokenizer_digest = "of a model that is gone"
    path = tmp_path / "old.html"
    assert command("generations", "show", "g", "--html", str(path)).returncode == 0
    assert page_data(path)["vocabulary"] == {}
    assert page_data(path)["sequences"][0]["text"] == TEXT


def test_a_failed_generation_has_its_page_too(server, command, tmp_path):
    failure = pb.Failure(code=13, reason="NON_FINITE_LOGITS", message="logits are NaN")
    server.script.events = journal(reason=pb.FINISH_REASON_FAILED, failure=failure)
    path = tmp_path / "failed.html"
    assert command("generate", "The", "--html", str(path)).returncode == 1
    assert "NON_FINITE_LOGITS" in page_data(path)["generation"]["failure"]


def test_a_page_that_cannot_be_written_is_refused_before_anything_is_spent(
    server, command, tmp_path
):
    (tmp_path / "file").write_text("x")
    for path, said in (
        (tmp_path, "is a directory"),
        (tmp_path / "missing" / "a.html", "not a directory"),
        (tmp_path / "file" / "a.html", "not a directory"),
    ):
        for arguments in (["generate", "The"], ["generations", "show", "g"]):
            refused = command(*arguments, "--html", str(path))
            assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert not server.script.calls


def page_data(path):
    content = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="record">(.*?)</script>', content)
    return json.loads(found[1])


def test_the_documents_example_runs(server, capsys):
    server.script.events = internals_journal()
    document = Path(__file__).parents[2] / "docs" / "why.md"
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    assert '"127.0.0.1:50051"' in code
    names: dict[str, object] = {}
    exec(code.replace('"127.0.0.1:50051"', repr(server.target)), names)
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "'Hello' [('Hello', 0.5), ('<s>', 0.125)]"
    assert len(told) == 2 * len(TOKEN_IDS)
    assert str(names["html"]).startswith("<!doctype html>")
