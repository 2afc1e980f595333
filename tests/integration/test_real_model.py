"""A real model, served: its answers are true, and those that transformers' `generate` gives."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer

from whence import Client
from whence.options import ChatMessage

PROMPT = "The capital of France is"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def client(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with (
        ServerProcess(real_model, tmp_path_factory.mktemp("data")) as process,
        Client(process.target) as client,
    ):
        yield client


def test_a_greedy_answer_is_true_and_equals_that_of_transformers(
    real_model: Path, client: Client
) -> None:
    model = AutoModelForCausalLM.from_pretrained(real_model)
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        expected = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0]

    with client.generate(PROMPT, max_new_tokens=24, greedy=True) as generation:
        tokens = list(generation)

    assert [token.token_id for token in tokens] == expected[prompt.input_ids.shape[1] :].tolist()
    assert tokens[0].text == " Paris"
    assert tokens[0].probability == pytest.approx(0.77, abs=0.01)


def test_a_chat_is_answered_truly_and_ends_by_itself(client: Client) -> None:
    messages: list[ChatMessage] = [{"role": "user", "content": QUESTION}]
    with client.generate(messages=messages, max_new_tokens=32, greedy=True) as generation:
        tokens = list(generation)
    assert "Paris" in generation.text
    assert generation.finish_reason == "end_of_sequence"
    assert len(tokens) < 32
