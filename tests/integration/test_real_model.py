"""A real model, served: its answers are true, and those that transformers' `generate` gives."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from whence import Client, InvalidRequestError
from whence.options import ChatMessage

SYSTEM = (
    "You answer questions about countries. Answer in one short sentence, with the name of the city "
    "or the river that was asked for, and add nothing else. If you do not know the answer, say so."
)
PROMPT = "The capital of France is"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def process(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(real_model, tmp_path_factory.mktemp("data")) as process:
        yield process


@pytest.fixture
def client(process: ServerProcess) -> Iterator[Client]:
    with Client(process.target) as client:
        yield client


@pytest.fixture(scope="module")
def model(real_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(real_model)


def test_a_greedy_answer_is_true_and_equals_that_of_transformers(
    real_model: Path, model: PreTrainedModel, client: Client
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        expected = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]

    with client.generate(PROMPT, max_new_tokens=24, greedy=True) as generation:
        tokens = list(generation)

    assert [token.token_id for token in tokens] == expected[prompt.input_ids.shape[1] :].tolist()
    assert tokens[0].text == " Paris"
    assert tokens[0].probability == pytest.approx(0.77, abs=0.01)


README = Path(__file__).parents[2] / "README.md"


def test_the_first_capture_of_the_readme_is_what_the_model_gives(
    process: ServerProcess,
) -> None:
    (command, shown), *_ = re.findall(
        r"```console\n\$ (.*?[^\\])\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    whence, *arguments = shlex.split(command.replace("\\\n", " "))
    assert whence == "whence"
    run = subprocess.run(
        [sys.executable, "-m", "whence.cli", *arguments, "--target", process.target],
        capture_output=True,
        text=True,
        check=True,
    )
    given = {_read_names(row): _read_percentages(row) for row in run.stdout.splitlines()}
    rows = [line for line in shown.splitlines() if line.startswith("    0/")]
    assert len(rows) >= 4
    for row in rows:
        # Another processor may round the last digit differently.
        assert given[_read_names(row)] == pytest.approx(_read_percentages(row), abs=0.2), row


def _read_names(row: str) -> str:
    """Return a row without its percentages: position, rank and tokens."""
    return re.sub(r" *[\d.]+%", "", row)


def _read_percentages(row: str) -> list[float]:
    return [float(percentage) for percentage in re.findall(r"([\d.]+)%", row)]


def test_a_chat_is_answered_truly_and_ends_by_itself(client: Client) -> None:
    messages: list[ChatMessage] = [{"role": "user", "content": QUESTION}]
    with client.generate(messages=messages, max_new_tokens=32, greedy=True) as generation:
        tokens = list(generation)
    assert "Paris" in generation.text
    assert generation.finish_reason == "end_of_sequence"
    assert len(tokens) < 32


def test_a_conversation_of_parts_and_names_is_rendered_as_transformers_does(
    real_model: Path, client: Client
) -> None:
    parts = [
        {"type": "text", "text": "What is the capital"},
        {"type": "text", "text": "of France?"},
    ]
    given: list[Any] = [
        {"role": "system", "content": "Be brief.", "name": "me", "refusal": None},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "It is", "reasoning_content": "France has one."},
    ]
    with client.generate(
        messages=given, continue_final_message=True, max_new_tokens=4, greedy=True
    ) as generation:
        generation.result()
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    joined = [
        *given[:1],
        {"role": "user", "content": "\n".join(p["text"] for p in parts)},
        given[2],
    ]
    expected = tokenizer.apply_chat_template(joined, tokenize=False, continue_final_message=True)
    assert generation.started is not None
    assert generation.started.prompt == expected
    assert generation.message == {"role": "assistant", "content": generation.text}


def test_tools_that_its_template_does_not_use_are_refused(client: Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with (
        pytest.raises(InvalidRequestError, match=r"chat.tools_json: .* does not use tools"),
        client.generate(messages=[{"role": "user", "content": QUESTION}], tools=[tool]) as refused,
    ):
        refused.result()


def test_a_chat_reads_only_what_is_new_and_answers_as_transformers_does(
    model: PreTrainedModel, client: Client
) -> None:
    messages: list[ChatMessage] = [{"role": "system", "content": SYSTEM}]
    num_known = 0
    for country in ("France", "Italy", "Japan"):
        question = f"What is the capital of {country}, and which river is near it?"
        messages.append({"role": "user", "content": question})
        with client.generate(messages=messages, max_new_tokens=24, greedy=True) as generation:
            ids = [token.token_id for token in generation]
        assert generation.started is not None
        assert generation.finished is not None
        prompt = list(generation.started.prompt_token_ids)
        num_cached = generation.finished.num_cached_prompt_tokens
        assert num_known - 16 < num_cached <= num_known
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0]
        assert ids == expected[len(prompt) :].tolist()
        num_known = len(prompt) + len(ids) - 1
        messages.append({"role": "assistant", "content": generation.text})
    assert num_known > 150
