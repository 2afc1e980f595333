"""A real model, served: its answers are true, and those that transformers' `generate` gives."""

import math
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding_oracle import expected
from draws import compute_noise
from server_process import ServerProcess
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from whence import Client, FinishReason, InvalidRequestError, Token
from whence.options import ChatMessage
from whence_server.domain.decoding import Decoding, Strategy

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


def test_a_forced_answer_and_its_prompt_have_the_logprobs_of_one_pass(
    real_model: Path, model: PreTrainedModel, client: Client
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    answer = " Lyon, and not Paris."
    prompt, forced = tokenizer(PROMPT).input_ids, tokenizer(answer).input_ids
    asked = tokenizer(" Paris Lyon").input_ids
    with torch.no_grad():
        logits = model(torch.tensor([prompt + forced])).logits[0]

    with client.generate(
        PROMPT, forced=answer, trace_prompt=True, num_candidates=2, logprob_token_ids=asked
    ) as generation:
        tokens = list(generation)

    assert generation.text == answer
    assert generation.prompt_tokens[0].logprob is None
    read = [*generation.prompt_tokens[1:], *tokens]
    assert [token.token_id for token in read] == (prompt + forced)[1:]
    for token, row in zip(read, torch.log_softmax(logits, -1), strict=False):
        assert token.logprob == pytest.approx(float(row[token.token_id]), abs=1e-3)
        assert token.rank == int((row > row[token.token_id]).sum())
        assert [c.token_id for c in token.candidates] == row.topk(2).indices.tolist()
    row = torch.log_softmax(logits[len(prompt) - 1], -1)
    found = [candidate.logprob for candidate in tokens[0].requested_logprobs]
    assert found == pytest.approx(row[asked].tolist(), abs=1e-3)


def test_beams_are_those_of_transformers(
    real_model: Path, model: PreTrainedModel, client: Client
) -> None:
    prompt = AutoTokenizer.from_pretrained(real_model)(PROMPT, return_tensors="pt")
    settings: Any = {"num_beams": 4, "max_new_tokens": 10, "length_penalty": 0.7}
    theirs = model.generate(
        **prompt,
        **settings,
        num_return_sequences=2,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )

    with client.generate(PROMPT, n=2, **settings) as generation:
        generation.result()

    new = theirs.sequences[:, prompt.input_ids.shape[1] :].tolist()
    assert [list(sequence.token_ids) for sequence in generation.sequences] == new
    scores = [sequence.score for sequence in generation.sequences]
    assert scores == pytest.approx(theirs.sequences_scores.tolist(), rel=1e-4)


def test_samples_are_drawn_from_what_transformers_processors_leave(
    model: PreTrainedModel, client: Client
) -> None:
    settings: Any = {"temperature": 0.9, "top_k": 8, "repetition_penalty": 1.2, "seed": 5}
    with client.generate(
        PROMPT, **settings, n=2, max_new_tokens=12, num_candidates=8, ignore_eos=True
    ) as generation:
        tokens = list(generation)

    assert generation.started is not None
    prompt = list(generation.started.prompt_token_ids)
    names = ["repetition_penalty", "temperature", "top_k"]
    for sequence in generation.sequences:
        ids = list(sequence.token_ids)
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 :]
        own = [token for token in tokens if token.sequence_index == sequence.sequence_index]
        decoding = Decoding(Strategy.SAMPLE, max_new_tokens=12, **settings)
        for i, token in enumerate(own):
            wanted = expected(logits[i], decoding, prompt, ids[:i])
            assert [effect.name for effect in token.processors] == wanted.names == names
            for effect, after in zip(token.processors, wanted.distributions[1:], strict=True):
                assert effect.num_kept == (after > -math.inf).sum()
                assert effect.token_logprob == pytest.approx(after[token.token_id], abs=1e-3)
            check_draw(token, settings["seed"], wanted.distributions[-1])
    assert generation.sequences[0].token_ids != generation.sequences[1].token_ids


def check_draw(token: Token, seed: int, logprobs: np.ndarray) -> None:
    """Recompute a draw from its seed, and from the logprobs [V] of what it was drawn from."""
    (alive,) = (logprobs > -math.inf).nonzero()
    keys = {int(i): math.log(compute_noise(seed, token, int(i))) - logprobs[i] for i in alive}
    first, second = sorted(keys, key=keys.__getitem__)[:2]
    assert token.draw is not None
    assert token.draw.margin == pytest.approx(keys[second] - keys[first], abs=2e-3)
    if token.draw.margin > 1e-2:
        assert (token.token_id, token.draw.runner_up_token_id) == (first, second)


def test_a_stop_string_ends_an_answer_before_it(client: Client) -> None:
    options: Any = {"messages": [{"role": "user", "content": QUESTION}], "greedy": True}
    with client.generate(**options, stop="Paris", max_new_tokens=24) as generation:
        generation.result()
    (sequence,) = generation.sequences
    assert sequence.text == "The capital of France is "
    assert (sequence.finish_reason, sequence.stop) == (FinishReason.STOP, "Paris")


def test_a_branch_repeats_the_model_s_draws_and_another_token_leads_elsewhere(
    client: Client,
) -> None:
    options = {"seed": 13, "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 16}
    parent = client.generate(PROMPT, **options).result()
    others = [client.generate(PROMPT, seed=n, max_new_tokens=24) for n in range(2)]
    branch = client.fork(parent.id, step=4).result()
    for other in others:
        other.result()
    theirs, ours = (list(client.generations.steps(it.id)) for it in (parent, branch))
    assert [token.token_id for token in ours] == [token.token_id for token in theirs]
    noises = [[token.draw.noise for token in it[4:] if token.draw] for it in (theirs, ours)]
    assert noises[0] == noises[1]

    first = client.generate(PROMPT, greedy=True, max_new_tokens=12).result()
    tokens = list(client.generations.steps(first.id))
    assert tokens[0].text == " Paris"
    other = next(it for it in tokens[0].candidates if it.text != " Paris")
    forked = client.fork(first.id, step=0, instead=other.text).result()
    assert forked.sequences[0].token_ids[0] == other.token_id
    assert forked.sequences[0].text.startswith(other.text)
    assert forked.sequences[0].text != first.sequences[0].text
    masked = client.fork(first.id, prompt="The capital of Italy is").result()
    assert "Rome" in masked.sequences[0].text
