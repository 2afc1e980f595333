"""A constraint on a real model: the answer is JSON, and the record says what that took."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from server_process import ServerProcess

from whence import Client

SCHEMA = {
    "type": "object",
    "properties": {
        "capital": {"type": "string", "minLength": 1, "maxLength": 20},
        "continent": {"enum": ["Europe", "Asia", "Africa", "America", "Oceania"]},
        "is_island": {"type": "boolean"},
    },
    "required": ["capital", "continent", "is_island"],
    "additionalProperties": False,
}
QUESTION = [{"role": "user", "content": "Describe France as JSON: capital, continent, is_island."}]


@pytest.fixture(scope="module")
def served(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(real_model, tmp_path_factory.mktemp("real")) as process:
        yield process


def test_the_answer_is_true_and_validates(served: ServerProcess) -> None:
    with Client(served.target) as client:
        generation = client.generate(
            messages=QUESTION, json_schema=SCHEMA, greedy=True, max_new_tokens=80
        )
        tokens = list(generation)
        summaries = [token.summary for token in tokens]
    (sequence,) = generation.sequences
    answer = json.loads(sequence.text)
    Draft202012Validator(SCHEMA).validate(answer)
    assert sequence.constraint_complete is True
    assert (answer["capital"], answer["continent"]) == ("Paris", "Europe")
    # Inside a string the model is nearly free; at a name of the schema it may be forced.
    taken = [token.constraint.removed_mass for token in tokens if token.constraint]
    assert len(taken) == len(tokens)
    assert min(taken) < 0.01
    assert max(taken) > 0.5
    assert any("constraint took" in summary for summary in summaries)


def test_samples_at_a_high_temperature_validate(served: ServerProcess) -> None:
    with Client(served.target) as client:
        generation = client.generate(
            messages=QUESTION, json_schema=SCHEMA, n=8, temperature=1.8, seed=3, max_new_tokens=120
        )
        for _ in generation:
            pass
    for sequence in generation.sequences:
        if sequence.constraint_complete:
            Draft202012Validator(SCHEMA).validate(json.loads(sequence.text))
        else:
            assert len(sequence.token_ids) == 120
    assert sum(bool(sequence.constraint_complete) for sequence in generation.sequences) >= 6
