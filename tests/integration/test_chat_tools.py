"""Tools over a whole conversation: defined, called, answered, and on record."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES, TOOLS
from server_process import ServerProcess
from tiny_models import save_tiny_model
from transformers import AddedToken, AutoTokenizer

from whence import AsyncClient, Client, InvalidRequestError
from whence.cli.main import main

QUESTION = {"role": "user", "content": "How warm is it in Zürich?"}
ARGUMENTS = '{"town": "Zürich",  "days": 3}'
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {ARGUMENTS}}}\n</tool_call>'
OUTPUT = f"Let me look.\n{CALL}"
NAMED = 'get_weather{"a": 1}'
TEMPLATES = {
    name: FAMILIES[family].source
    for name, family in {
        "default": "plain",
        "tool_use": "qwen",
        "thinking": "thinking",
        "mistral": "mistral_named",
    }.items()
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = save_tiny_model(tmp_path_factory.mktemp("tools"), "gpt2-long", 0)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("[TOOL_CALLS]"), AddedToken("[ARGS]")]}
    )
    tokenizer.chat_template = TEMPLATES
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(model, tmp_path_factory.mktemp("data")) as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.target) as made:
        yield made


def theirs(model: Path, messages: list[dict[str, Any]], **options: Any) -> str:
    tokenizer = AutoTokenizer.from_pretrained(model)
    options = {"add_generation_prompt": True, **options}
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_a_branch_has_the_conversation_of_its_parent_until_it_has_another_prompt(
    client: Client,
) -> None:
    parent = client.generate(messages=[QUESTION], tools=TOOLS, forced=OUTPUT).result()
    branch = client.fork(parent.id).result()
    assert branch.started.chat == parent.started.chat
    assert branch.started.prompt == parent.started.prompt
    assert branch.started.operation == "chat"
    assert [call.arguments_json for call in branch.tool_calls] == [ARGUMENTS]
    asked = {"role": "user", "content": "How cold is it?"}
    other = client.fork(parent.id, messages=[asked], tools=TOOLS).result()
    assert "How cold is it?" in other.started.prompt
    assert other.text == OUTPUT
    text = client.fork(parent.id, prompt=parent.started.prompt).result()
    assert not text.started.fork.changes_prompt


def test_a_call_is_read_sent_back_with_its_result_and_rendered_as_transformers_does(
    model: Path, client: Client
) -> None:
    messages: list[Any] = [QUESTION]
    with client.generate(messages=messages, tools=TOOLS, forced=OUTPUT) as generation:
        streamed = "".join(token.text for token in generation)
    assert streamed == generation.text == OUTPUT
    (call,) = generation.tool_calls
    assert (call.name, call.arguments_json) == ("get_weather", ARGUMENTS)
    assert call.arguments == {"town": "Zürich", "days": 3}
    place = OUTPUT.encode()[call.text_bytes.start : call.text_bytes.stop]
    assert place.decode() == CALL
    assert generation.message is not None
    assert generation.message["content"] == "Let me look."

    result = {"role": "tool", "tool_call_id": call.id, "content": "21 °C"}
    messages += [generation.message, result]
    with client.generate(messages=messages, tools=TOOLS, max_new_tokens=1) as answer:
        answer.result()
    sent = json.loads(json.dumps(messages))
    sent[1]["tool_calls"][0]["function"]["arguments"] = call.arguments
    assert answer.started is not None
    assert answer.started.prompt == theirs(model, sent, tools=TOOLS)


def test_the_record_has_the_conversation_and_the_calls(client: Client) -> None:
    given = {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    }
    with client.generate(messages=[given], tools=TOOLS, forced=OUTPUT) as generation:
        generation.result()
    record = client.generations.get(generation.id)
    chat = record.started.chat
    assert [part.text for part in chat.input.messages[0].content_parts] == ["a", "b"]
    assert json.loads(chat.input.tools_json) == TOOLS
    assert (chat.template_name, chat.tool_call_format) == ("tool_use", "hermes")
    (parsed,) = record.finished.sequences[0].tool_calls
    assert parsed.call.id == generation.tool_calls[0].id
    assert "user\na\nb<" in record.started.prompt


def test_marks_that_are_special_tokens_are_read(model: Path, client: Client) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    marked = 'é[TOOL_CALLS]get_weather[ARGS]{"a": 1}'
    ids = tokenizer(marked, add_special_tokens=False)["input_ids"]
    options: Any = {"template_name": "mistral", "tools": TOOLS, "forced": ids}
    with client.generate(messages=[QUESTION], **options) as generation:
        generation.result()
    assert generation.text == f"é{NAMED}"
    (call,) = generation.tool_calls
    assert (call.name, call.arguments_json) == ("get_weather", '{"a": 1}')
    assert generation.text.encode()[call.text_bytes.start :].decode() == NAMED


def test_reasoning_is_read_from_a_prompt_that_begins_it(client: Client) -> None:
    options: Any = {"template_name": "thinking", "template_arguments": {"open_thinking": True}}
    with client.generate(
        messages=[QUESTION], forced="It is summer.\n</think>\n\nWarm.", **options
    ) as generation:
        generation.result()
    (sequence,) = generation.sequences
    assert sequence.reasoning == "It is summer."
    assert sequence.message == {
        "role": "assistant",
        "content": "Warm.",
        "reasoning_content": "It is summer.",
    }


def test_without_tools_or_in_another_form_a_call_is_text(client: Client) -> None:
    malformed = OUTPUT.replace("{", "(", 1)
    for options in ({"forced": OUTPUT}, {"tools": TOOLS, "forced": malformed}):
        given: Any = options
        with client.generate(messages=[QUESTION], **given) as generation:
            generation.result()
        assert generation.tool_calls == ()
        assert generation.text == options["forced"]
        assert generation.message == {"role": "assistant", "content": options["forced"]}


def test_a_part_that_is_no_text_and_unseen_tools_are_refused_by_field(client: Client) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "data:,"}}
    with pytest.raises(ValueError, match=r"messages\[0\].content\[0\].type is 'image_url'"):
        client.generate(messages=[{"role": "user", "content": [image]}])
    with (
        pytest.raises(InvalidRequestError, match="does not use tools") as caught,
        client.generate(messages=[QUESTION], tools=TOOLS, template_name="default") as generation,
    ):
        generation.result()
    assert [violation.field for violation in caught.value.violations] == ["chat.tools_json"]


async def test_the_asynchronous_client_does_the_same(server: ServerProcess) -> None:
    async with (
        AsyncClient(server.target) as client,
        client.generate(messages=[QUESTION], tools=TOOLS, forced=OUTPUT) as generation,
    ):
        async for _ in generation:
            pass
        assert [call.name for call in generation.tool_calls] == ["get_weather"]
        assert generation.message is not None
        assert generation.message["tool_calls"][0]["function"]["arguments"] == ARGUMENTS


def test_the_command_sends_files_and_shows_calls(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages, tools, page = (tmp_path / name for name in ("m.json", "t.json", "page.html"))
    messages.write_text(json.dumps([QUESTION]), encoding="utf-8")
    tools.write_text(json.dumps(TOOLS), encoding="utf-8")
    command = ["generate", "--target", server.target, "--messages", str(messages)]
    command += ["--tools", str(tools), "--forced", OUTPUT]
    assert main([*command, "--html", str(page)]) == 0
    shown = capsys.readouterr()
    assert shown.out == OUTPUT + "\n"
    (line,) = [line for line in shown.err.splitlines() if line.startswith("tool call ")]
    assert line.endswith(': get_weather {"town": "Zürich", "days": 3}')
    assert '"tool_calls":[{"id":' in page.read_text(encoding="utf-8")

    assert main([*command, "--json"]) == 0
    finished = json.loads(capsys.readouterr().out.splitlines()[-1])
    (call,) = finished["sequences"][0]["tool_calls"]
    assert (call["name"], call["arguments_json"]) == ("get_weather", ARGUMENTS)

    assert main(["generations", "show", finished["generation_id"], "--target", server.target]) == 0
    assert f'tool call {call["id"]}  get_weather {{"town": "Zürich"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "there is nothing to continue"),
        (["Hi", "--messages", "FILE"], "--messages is the whole input"),
        (["--messages", "FILE", "--system", "x"], "--messages is the whole input"),
        (["--messages", "no such file"], "--messages no such file: No such file"),
        (["Hi", "--chat", "--tools", "FILE"], "--tools FILE is no JSON"),
        (["Hi", "--tools", "TOOLS"], "`tools` is for a chat template"),
    ],
)
def test_wrong_uses_of_the_command_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("[", encoding="utf-8")
    Path("TOOLS").write_text("[]", encoding="utf-8")
    assert main(["generate", *flags, "--target", "unix:none"]) == 2
    assert words in capsys.readouterr().err
